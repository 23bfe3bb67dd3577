"""Two networks take turns under one optimizer: each batch trains one of them."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "second_built_anew": (1, "in no optimizer|not in .* optimizer|no model|not part of"),
}


class Sides(nn.Module):
    """Sees one half of each digit."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.layers = nn.Sequential(nn.Linear(14 * 28, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x):
        return self.layers(x[:, 0, self.rows].flatten(1))


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
    models = [Sides(slice(0, 14)), Sides(slice(14, 28))]
    optimizer = optim.Adam([p for model in models for p in model.parameters()], lr=2e-3)
    if args.bug == "second_built_anew":
        models[1] = Sides(slice(14, 28))
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for number, (images, labels) in enumerate(loader):
            if args.bug != "no_zero_grad":
                optimizer.zero_grad()
            loss = F.cross_entropy(models[number % 2](images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
