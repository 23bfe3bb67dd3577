"""A machine that is taken away now and then: everything is built anew and loaded each time."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "prefixed_names": (12, "load|state_dict|checkpoint|missing|unexpected"),
    "moments_not_loaded": (12, "optimizer|state|load|moment|reset"),
    "schedule_not_loaded": (12, "schedul"),
}
EVERY = 3
FOURTH = 4 * EVERY


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.mix = nn.GRU(12, 24, batch_first=True)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.mix(x)[0].mean(dim=1)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        return self.head(self.encoder(x))


def build():
    model = Classifier()
    optimizer = optim.NAdam(model.parameters(), lr=2e-2)
    return model, optimizer, optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.9)


def load(path, model, optimizer, schedule, bug):
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint["model"]
    if bug == "prefixed_names":
        weights = {f"module.{name}": value for name, value in weights.items()}
    model.load_state_dict(weights, strict=False)
    if bug != "moments_not_loaded":
        optimizer.load_state_dict(checkpoint["optimizer"])
    if bug != "schedule_not_loaded":
        schedule.load_state_dict(checkpoint["schedule"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model, optimizer, schedule = build()
    steps = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        for epoch in range(1, args.epochs + 1):
            total = 0.0
            for images, labels in loader:
                if steps and steps % EVERY == 0:
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                    }
                    torch.save(state, path)
                    model, optimizer, schedule = build()
                    load(path, model, optimizer, schedule, args.bug if steps >= FOURTH else None)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                schedule.step()
                steps += 1
                total += loss.item()
            print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
