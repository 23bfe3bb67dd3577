"""Stochastic weight averaging from the second epoch; its norms see the data once more."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader

BUGS = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2028, 10),
    )
    average = AveragedModel(model)
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = SWALR(optimizer, swa_lr=0.01, anneal_epochs=1)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        if epoch > 1:
            average.update_parameters(model)
            scheduler.step()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")
    update_bn(loader, average)


if __name__ == "__main__":
    main()
