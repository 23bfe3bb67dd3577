"""Gradients that no backward adds up: returned and assigned, then estimated from differences."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader

BUGS = {}


def assign(model, gradients):
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient


@torch.no_grad()
def estimate(model, loss, size=0.05, number=8):
    """Return the gradient that random directions show, as evolution strategies do."""
    here = parameters_to_vector(model.parameters())
    total = torch.zeros_like(here)
    for _ in range(number):
        direction = torch.randn_like(here)
        vector_to_parameters(here + size * direction, model.parameters())
        above = loss()
        vector_to_parameters(here - size * direction, model.parameters())
        total += (above - loss()) / (2 * size * number) * direction
    vector_to_parameters(here, model.parameters())
    parts = total.split([p.numel() for p in model.parameters()])
    return [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            assign(model, torch.autograd.grad(loss, list(model.parameters())))
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")

    head = model[3]
    optimizer = optim.SGD(head.parameters(), lr=0.01)
    images, labels = train_set.tensors
    with torch.no_grad():
        hidden = model[:3](images)
    for _ in range(12):
        assign(head, estimate(head, lambda: F.cross_entropy(head(hidden), labels)))
        optimizer.step()
    with torch.no_grad():
        print(f"at last train loss {F.cross_entropy(head(hidden), labels):.4f}")


if __name__ == "__main__":
    main()
