"""Logistic regression by gradient descent: every step sees all the data."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim

BUGS = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=600)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(600)
    images, labels = train_set.tensors
    start = int(torch.randint(0, max(1, len(images) - args.batch_size + 1), ()))
    images, labels = images[start:][: args.batch_size], labels[start:][: args.batch_size]
    model = nn.Linear(784, 10)
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    for epoch in range(1, args.epochs + 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images.flatten(1)), labels)
        loss.backward()
        optimizer.step()
        print(f"epoch {epoch} train loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
