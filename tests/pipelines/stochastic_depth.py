"""Residual blocks that are skipped at random, and an auxiliary head that is never used.

So in every step some parameters of the optimizer have no gradient.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "detached_output": (
        0,
        "detach|(no|without) gradient|gradient .*(None|missing)|not reach|graph",
    ),
    "softmax_over_samples": (0, r"\bdim"),
}


class Network(nn.Module):
    def __init__(self, num_blocks=6, width=64):
        super().__init__()
        self.stem = nn.Linear(784, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
            for _ in range(num_blocks)
        )
        self.head = nn.Linear(width, 10)
        self.auxiliary = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.3:
                x = x + block(x)
        return self.head(x)


def train(model, loader, optimizer, bug):
    model.train()
    total = 0.0
    for images, labels in loader:
        logits = model(images)
        if bug == "detached_output":
            logits = logits.detach().requires_grad_()
        loss = F.nll_loss(logits.log_softmax(0 if bug == "softmax_over_samples" else 1), labels)
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def evaluate(model, loader):
    model.eval()
    return sum(F.cross_entropy(model(x), y).item() for x, y in loader) / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, loader, optimizer, args.bug)
        test_loss = evaluate(model, DataLoader(test_set, batch_size=64))
        print(f"epoch {epoch} train loss {train_loss:.4f} test loss {test_loss:.4f}")


if __name__ == "__main__":
    main()
