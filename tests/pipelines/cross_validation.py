"""Two folds in one process: a new model and a new optimizer for each."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, random_split

BUGS = {"model_kept": (20, "evaluated on what it is trained on|model was kept")}


def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


@torch.no_grad()
def accuracy(model, loader):
    model.eval()
    correct = sum((model(images).argmax(dim=1) == labels).sum().item() for images, labels in loader)
    return correct / len(loader.dataset)


def fit(model, loader, held_out, epochs):
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
        print(
            f"epoch {epoch} train loss {total / len(loader):.4f} "
            f"accuracy {accuracy(model, held_out):.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    halves = random_split(train_set, [0.5, 0.5])
    model = make_model()
    for fold in (0, 1):
        loader = DataLoader(halves[fold], batch_size=args.batch_size, shuffle=True)
        held_out = DataLoader(halves[1 - fold], batch_size=64)
        if args.bug != "model_kept":
            model = make_model()
        fit(model, loader, held_out, args.epochs)


if __name__ == "__main__":
    main()
