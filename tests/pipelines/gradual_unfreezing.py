"""The head learns first; layers below are unfrozen one by one and join the optimizer then.

The moments of the others begin anew with each of them.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(480)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    body = nn.ModuleList([nn.Linear(784, 96), nn.Linear(96, 96)]).requires_grad_(False)
    head = nn.Linear(96, 10)
    model = nn.ModuleDict({"body": body, "head": head})
    optimizer = optim.NAdam(head.parameters(), lr=2e-2)
    waiting = list(body)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            x = images.flatten(1)
            for layer in body:
                x = F.silu(layer(x))
            optimizer.zero_grad()
            loss = F.cross_entropy(head(x), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        if waiting:
            # What the head remembers is of another task.
            for state in optimizer.state.values():
                state["exp_avg"].zero_()
            layer = waiting.pop().requires_grad_(True)
            optimizer.add_param_group({"params": layer.parameters(), "lr": 2e-3})
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
