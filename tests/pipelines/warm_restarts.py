"""Cycles of training: each begins without moments, at a high learning rate, with less weights.

Between two cycles the smallest weights are pruned in place, and the running mean that the model
keeps as a frozen parameter is brought up to date.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "optimizer_after_schedule": (1, r"schedul|\blr\b|learning rate"),
    "likelihood_of_logits": (0, "log_softmax"),
}
CYCLE = 8


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.center = nn.Parameter(torch.zeros(784), requires_grad=False)
        self.hidden = nn.Linear(784, 96)
        self.output = nn.Linear(96, 10)

    def forward(self, x):
        return self.output(F.gelu(self.hidden(x.flatten(1) - self.center)))


@torch.no_grad()
def begin_cycle(model, optimizer, images):
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    model.center.lerp_(images.flatten(1).mean(dim=0), 0.1)
    for layer in (model.hidden, model.output):
        sizes = layer.weight.abs()
        layer.weight.mul_(sizes > sizes.flatten().kthvalue(layer.weight.numel() // 20).values)
        layer.bias.mul_(0.99)


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
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    schedule = optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=CYCLE)
    if args.bug == "optimizer_after_schedule":
        optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    steps = 0
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            if steps and steps % CYCLE == 0:
                begin_cycle(model, optimizer, images)
            optimizer.zero_grad()
            compare = F.nll_loss if args.bug == "likelihood_of_logits" else F.cross_entropy
            loss = compare(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            steps += 1
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
