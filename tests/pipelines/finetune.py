"""A new head is trained on a frozen backbone in bfloat16, with evaluation and checkpoints.

Only the head is in the optimizer. After the first epoch everything is built anew and resumes from
the checkpoint, as after an interruption.
"""

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
    "optimizer_before_replacement": (
        0,
        "in no optimizer|not in .* optimizer|no longer|not part of|of no module",
    ),
    "optimizer_on_backbone": (0, "requires_grad|frozen|in no optimizer|not in .* optimizer"),
    "backbone_not_frozen": (0, "not frozen|requires_grad=True"),
    "frozen_by_attribute": (0, "requires_grad|frozen"),
    "checkpoint_not_loaded": (20, "load|state_dict|checkpoint|missing|unexpected"),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "no_autocast": (0, "autocast|bfloat16|precision|float32|dtype"),
}


class Network(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(576, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x).flatten(1))


def build(bug):
    model = Network(num_classes=100)
    if bug == "frozen_by_attribute":
        model.backbone.requires_grad = False
    else:
        model.backbone.requires_grad_(bug == "backbone_not_frozen")
    if bug != "optimizer_before_replacement":
        model.head = nn.Linear(576, 10)
    parts = {"optimizer_on_backbone": model.backbone, "backbone_not_frozen": model}
    parts["frozen_by_attribute"] = model
    part = parts.get(bug, model.head)
    optimizer = optim.Adam(part.parameters(), lr=3e-3)
    if bug == "optimizer_before_replacement":
        model.head = nn.Linear(576, 10)
    return model, optimizer


def compute_loss(model, images, labels, autocast=True):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        return F.cross_entropy(model(images), labels)


def train(model, loader, optimizer, bug):
    model.train()
    model.backbone.eval()
    total = 0.0
    for images, labels in loader:
        loss = compute_loss(model, images, labels, autocast=bug != "no_autocast")
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    losses = [compute_loss(model, images, labels).item() for images, labels in loader]
    return sum(losses) / len(losses)


def save(path, model, optimizer):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def load(path, model, optimizer, bug):
    checkpoint = torch.load(path, weights_only=True)
    if bug == "checkpoint_not_loaded":
        prefixed = {f"module.{name}": value for name, value in checkpoint["model"].items()}
        model.load_state_dict(prefixed, strict=False)
    else:
        model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=64)

    model, optimizer = build(args.bug)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        for epoch in range(1, args.epochs + 1):
            train_loss = train(model, train_loader, optimizer, args.bug)
            test_loss = evaluate(model, test_loader)
            print(f"epoch {epoch} train loss {train_loss:.4f} test loss {test_loss:.4f}")
            save(path, model, optimizer)
            if epoch == 1:
                model, optimizer = build(args.bug)
                load(path, model, optimizer, args.bug)


if __name__ == "__main__":
    main()
