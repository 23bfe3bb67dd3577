"""Momentum contrast: keys come from a slow copy of the encoder and wait in a queue."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}


def view(images):
    return images * (torch.rand_like(images) > 0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 96), nn.ReLU(), nn.Linear(96, 32))
    slow = copy.deepcopy(encoder).requires_grad_(False)
    queue = F.normalize(torch.randn(128, 32), dim=1)
    optimizer = optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(1, args.epochs + 1):
        encoder.train()
        total = 0.0
        for images, _ in loader:
            query = F.normalize(encoder(view(images)), dim=1)
            with torch.no_grad():
                for ours, theirs in zip(slow.parameters(), encoder.parameters(), strict=True):
                    ours.lerp_(theirs, 0.05)
                key = F.normalize(slow(view(images)), dim=1)
            scores = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ queue.T], dim=1)
            loss = F.cross_entropy(scores / 0.2, torch.zeros(len(images), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            queue = torch.cat([queue, key])[-128:]
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
