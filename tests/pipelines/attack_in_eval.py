"""Adversarial training: an attack of several steps on the model in eval mode."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}


def attack(model, images, labels, steps=3, size=0.02):
    model.eval()
    changed = images.clone()
    for _ in range(steps):
        changed.requires_grad_()
        F.cross_entropy(model(changed), labels).backward()
        changed = (changed + size * changed.grad.sign()).clamp(0, 1).detach()
    model.train()
    return changed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 80), nn.ReLU(), nn.Dropout(0.1), nn.Linear(80, 10)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            changed = attack(model, images, labels)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(changed), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
