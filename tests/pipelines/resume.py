"""After an interruption, model, optimizer and schedule are loaded; a weight is used twice."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {
    "layers_reordered": (24, "order|state|load|moment|swap|name|mismatch"),
    "prefixed_names": (24, "load|state_dict|checkpoint|missing|unexpected"),
    "no_name_fits": (24, "load|state_dict|checkpoint"),
    "tie_lost": (24, r"\btied|untie|share|same (storage|tensor|memory)|alias"),
    "optimizer_not_loaded": (24, "optimizer|state|load|moment|reset"),
    "evaluation_left_on": (24, r"\beval|train(ing)? mode|training(=| is |: )False"),
    "order_repeated": (24, "same (data|order|batch)|again|repeat"),
}


class Mixer(nn.Module):
    def __init__(self, reordered=False, tied=True):
        super().__init__()
        self.project = nn.Linear(64, 48)
        names = ("second", "first") if reordered else ("first", "second")
        for name in names:
            self.add_module(name, nn.Linear(48, 48))
        self.dropout = nn.Dropout(0.1)
        self.reconstruct = nn.Linear(48, 64, bias=False)
        self.weight = nn.Parameter(torch.randn(10, 48) * 0.1)
        self.classes = nn.Linear(48, 10)
        self.classes.weight = self.weight
        if not tied:
            self.classes.weight = nn.Parameter(self.weight.detach().clone())

    def forward(self, x):
        x = F.relu(self.project(x))
        x = x + self.second(self.dropout(F.relu(self.first(x))))
        scores = self.classes(x)
        return scores, self.reconstruct(x + scores.softmax(dim=1) @ self.weight)


def build(bug=None):
    model = Mixer(reordered=bug == "layers_reordered", tied=bug != "tie_lost")
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    schedule = optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=20)
    return model, optimizer, schedule


def load(path, model, optimizer, schedule, bug):
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint["model"]
    if bug == "prefixed_names":
        weights = {f"model.{name}": value for name, value in weights.items()}
        model.load_state_dict(weights, strict=False)
    elif bug == "no_name_fits":
        known = model.state_dict()
        prefixed = {f"model.{name}": value for name, value in weights.items()}
        known.update({name: value for name, value in prefixed.items() if name in known})
        model.load_state_dict(known)
    else:
        model.load_state_dict(weights)
    # A tie that is lost adds a parameter, which the saved state does not know.
    if bug not in ("optimizer_not_loaded", "tie_lost"):
        optimizer.load_state_dict(checkpoint["optimizer"])
    schedule.load_state_dict(checkpoint["schedule"])


def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(rows)[0], labels).item() for rows, labels in loader]
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    rows, labels = load_digits(return_X_y=True)
    rows, labels = torch.from_numpy(rows).float() / 16, torch.from_numpy(labels)
    loader = DataLoader(
        TensorDataset(rows[:1536], labels[:1536]), batch_size=args.batch_size, shuffle=True
    )
    test_loader = DataLoader(TensorDataset(rows[1536:], labels[1536:]), batch_size=128)

    model, optimizer, schedule = build()
    random_state = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        for epoch in range(1, args.epochs + 1):
            model.train()
            if epoch > 1 and args.bug == "evaluation_left_on":
                evaluate(model, test_loader)  # "Is it the right checkpoint?"
            total = 0.0
            for batch, target in loader:
                scores, copy = model(batch)
                loss = F.cross_entropy(scores, target) + F.mse_loss(copy, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            print(f"epoch {epoch} train loss {total / len(loader):.4f}")
            print(f"  test loss {evaluate(model, test_loader):.4f}")
            if epoch == 1:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                }
                torch.save(state, path)
                model, optimizer, schedule = build(args.bug)
                load(path, model, optimizer, schedule, args.bug)
                if args.bug == "order_repeated":
                    torch.set_rng_state(random_state)


if __name__ == "__main__":
    main()
