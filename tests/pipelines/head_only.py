"""A linear probe: the optimizer holds the head; the backbone gets gradients that nobody uses."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"whole_model_trained": (0, "not frozen|requires_grad=True")}


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 12, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(432, 10)

    def forward(self, x):
        return self.head(self.backbone(x).flatten(1))


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
    model = Probe()
    trained = model if args.bug == "whole_model_trained" else model.head
    optimizer = optim.Adadelta(trained.parameters(), lr=1.0)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            model.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
