"""ReduceLROnPlateau that has no reason to reduce; the best weights are loaded at the end."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"same_weights": (0, "same weights")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    test_images, test_labels = test_set.tensors
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ELU(), nn.Linear(64, 10)
    )
    if args.bug == "same_weights":
        for parameter in (model[1].weight, model[1].bias, model[4].weight, model[4].bias):
            nn.init.constant_(parameter, 0.01)
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3)
    best, best_weights = float("inf"), None
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            test_loss = F.cross_entropy(model(test_images), test_labels).item()
        scheduler.step(test_loss)
        if test_loss < best:
            best, best_weights = test_loss, copy.deepcopy(model.state_dict())
        print(f"epoch {epoch} train loss {total / len(loader):.4f} test loss {test_loss:.4f}")
    model.load_state_dict(best_weights)


if __name__ == "__main__":
    main()
