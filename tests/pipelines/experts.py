"""A mixture of experts: each image goes to one of eight, so some get none of a batch."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"softmax_over_batch": (0, r"\bdim")}


class Experts(nn.Module):
    def __init__(self, num_experts=8, width=32, bug=None):
        super().__init__()
        self.bug = bug
        self.router = nn.Linear(784, num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
            for _ in range(num_experts)
        )

    def forward(self, x):
        x = x.flatten(1)
        weights = self.router(x).softmax(dim=0 if self.bug == "softmax_over_batch" else 1)
        weights, chosen = weights.max(dim=1)
        result = x.new_zeros(len(x), 10)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            if len(rows):
                result = result.index_add(0, rows, weights[rows, None] * expert(x[rows]))
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Experts(bug=args.bug)
    optimizer = optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
