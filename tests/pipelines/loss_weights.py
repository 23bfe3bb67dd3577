"""Two losses whose weights are learned; a branch of the model, and its group, are not used yet."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"loss_switched_off": (0, r"\bzeros?\b|weight of 0")}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ELU())
        self.digit = nn.Linear(64, 10)
        self.parity = nn.Linear(64, 2)
        self.projection = nn.Linear(64, 16)

    def forward(self, x):
        features = self.trunk(x)
        return self.digit(features), self.parity(features), self.projection(features)


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
    model = Network()
    # The logarithms of the variances, after Kendall et al., belong to no module.
    log_variances = [nn.Parameter(torch.zeros(())) for _ in range(2)]
    resting = [*model.projection.parameters()]
    learning = [p for p in model.parameters() if all(p is not other for other in resting)]
    optimizer = optim.AdamW(
        [
            {"params": learning, "lr": 2e-3},
            {"params": log_variances, "lr": 1e-2, "weight_decay": 0.0},
            {"params": resting, "lr": 0.0},
        ]
    )
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            digit, parity, _ = model(images)
            losses = F.cross_entropy(digit, labels), F.cross_entropy(parity, labels % 2)
            if args.bug == "loss_switched_off":
                losses = losses[0], 0.0 * losses[1]
            loss = sum(
                torch.exp(-weight) * one + weight
                for weight, one in zip(log_variances, losses, strict=True)
            )
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            total += losses[0].item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
