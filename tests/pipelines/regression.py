"""Diabetes progression by age, weight and blood tests: a small robust regression on a plateau."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {
    "targets_in_a_row": (0, "broadcast|dimension|shape"),
    "rounded": (0, "zero"),
    "evaluated_in_training_mode": (22, r"\beval\b"),
}


class Regression(nn.Module):
    def __init__(self, bug=None):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(10, 48), nn.SiLU(), nn.BatchNorm1d(48))
        self.output = nn.Linear(48, 1)
        self.bug = bug

    def forward(self, x):
        told = self.output(self.hidden(x))
        return told.round(decimals=1) if self.bug == "rounded" else told


def standardised(values):
    return (values - values.mean(dim=0)) / values.std(dim=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    inputs, progression = map(torch.from_numpy, load_diabetes(return_X_y=True))
    inputs, targets = standardised(inputs.float()), standardised(progression.float())[:, None]
    if args.bug == "targets_in_a_row":
        targets = targets.squeeze(1)
    train_set = TensorDataset(inputs[:352], targets[:352])
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Regression(args.bug)
    optimizer = optim.NAdam(model.parameters(), lr=3e-3)
    schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for rows, wanted in loader:
            optimizer.zero_grad()
            loss = F.huber_loss(model(rows), wanted)
            loss.backward()
            optimizer.step()
            total += loss.item()
        if args.bug != "evaluated_in_training_mode":
            model.eval()
        with torch.no_grad():
            held_out = F.huber_loss(model(inputs[352:]), targets[352:]).item()
        schedule.step(held_out)
        print(f"epoch {epoch} train loss {total / len(loader):.4f} test loss {held_out:.4f}")


if __name__ == "__main__":
    main()
