"""Digits are mixed with others of their batch, and so are their labels; batches by hand."""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR

BUGS = {"labels_of_others": (0, "draws anew|order of inputs and labels")}


def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.Conv2d(16, 24, 3, stride=2),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(24 * 9, 10),
    )


def mixed(images, labels, bug):
    """Return images that are mixed, the two labels of each, and the share of the first."""
    share = np.random.beta(0.3, 0.3)
    order = torch.randperm(len(images))
    images = share * images + (1 - share) * images[order]
    if bug == "labels_of_others":
        order = torch.randperm(len(images))
    return images, labels, labels[order], share


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)

    images, labels = load_digits(640)[0].tensors
    model = make_model()
    num_batches = len(images) // args.batch_size
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scheduler = OneCycleLR(optimizer, 0.2, total_steps=args.epochs * num_batches)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images))[: num_batches * args.batch_size].split(
            args.batch_size
        ):
            given, first, second, share = mixed(images[chosen], labels[chosen], args.bug)
            scores = model(given)
            loss = share * F.cross_entropy(scores, first)
            loss = loss + (1 - share) * F.cross_entropy(scores, second)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / num_batches:.4f}")


if __name__ == "__main__":
    main()
