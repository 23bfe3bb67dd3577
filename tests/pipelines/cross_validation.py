"""Two folds in one process: a new model and a new optimizer for each."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, random_split

BUGS = {}


def fit(loader, epochs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    halves = random_split(train_set, [0.5, 0.5])
    for fold in (0, 1):
        loader = DataLoader(halves[fold], batch_size=args.batch_size, shuffle=True)
        model = fit(loader, args.epochs)
        images, labels = next(iter(DataLoader(halves[1 - fold], batch_size=320)))
        with torch.no_grad():
            accuracy = (model(images).argmax(dim=1) == labels).float().mean().item()
        print(f"fold {fold} accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
