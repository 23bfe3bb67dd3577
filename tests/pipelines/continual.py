"""Two tasks one after the other; what the first one learned is held by its Fisher information."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {}


def importance(model, loader):
    """Return how much the loss depends on each parameter: squares of gradients, in eval mode."""
    model.eval()
    totals = [torch.zeros_like(p) for p in model.parameters()]
    for images, labels in loader:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for total, parameter in zip(totals, model.parameters(), strict=True):
            total += parameter.grad.square() / len(loader)
    model.zero_grad()
    model.train()
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    images, labels = load_digits(800)[0].tensors
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 88), nn.ReLU(), nn.Dropout(0.2), nn.Linear(88, 10)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.08, momentum=0.9, nesterov=True)
    held = []
    for task in range(2):
        chosen = (labels >= 5) == bool(task)
        loader = DataLoader(
            TensorDataset(images[chosen], labels[chosen]), args.batch_size, shuffle=True
        )
        for epoch in range(1, args.epochs + 1):
            total = 0.0
            for batch, wanted in loader:
                loss = F.cross_entropy(model(batch), wanted)
                for parameter, (weight, value) in zip(model.parameters(), held, strict=False):
                    loss = loss + 5 * (weight * (parameter - value).square()).sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                total += loss.item()
            print(f"task {task + 1} epoch {epoch} loss {total / len(loader):.4f}")
        weights = importance(model, loader)
        held = [(w, p.detach().clone()) for w, p in zip(weights, model.parameters(), strict=True)]


if __name__ == "__main__":
    main()
