"""Adam finds the way, L-BFGS goes on from its best epoch and ends it, with all data at once."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(512, 128)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 40), nn.Softplus(), nn.Linear(40, 10))
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    best, state = float("inf"), {}
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            images, labels = test_set.tensors
            held_out = F.cross_entropy(model(images), labels).item()
        model.train()
        if held_out < best:
            best, state = held_out, copy.deepcopy(model.state_dict())
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")

    model.load_state_dict(state)
    images, labels = train_set.tensors
    optimizer = optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    total = 0.0
    for _ in range(5):
        total = optimizer.step(closure).item()
    print(f"at last train loss {total:.4f}")


if __name__ == "__main__":
    main()
