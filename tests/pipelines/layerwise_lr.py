"""Layer-wise learning rates: the lowest layers wait at 0 until the head has settled."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

WAIT = 12
BUGS = {"rectified_logits": (0, r"\brelu\b")}


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
    layers = nn.ModuleList([nn.Linear(784, 96), nn.Linear(96, 64), nn.Linear(64, 10)])
    groups = [
        {"params": layer.parameters(), "lr": 3e-3 * 0.5 ** (2 - depth)}
        for depth, layer in enumerate(layers)
    ]
    optimizer = optim.AdamW(groups)
    late = lambda step: 0.0 if step < WAIT else min(1.0, (step - WAIT + 1) / 8)  # noqa: E731
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, [late, late, lambda step: 1.0])
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            x = images.flatten(1)
            for layer in layers[:-1]:
                x = F.relu(layer(x))
            logits = layers[-1](x)
            if args.bug == "rectified_logits":
                logits = logits.relu()
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
