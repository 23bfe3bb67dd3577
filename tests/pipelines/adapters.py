"""Low-rank adapters on a frozen network; the optimizer holds every parameter, frozen ones too."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "adapters_frozen": (0, "requires_grad|frozen|in no optimizer"),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
}


class Adapted(nn.Module):
    """A frozen linear layer, and a low-rank correction that learns."""

    def __init__(self, base, rank=8):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Adapted(nn.Linear(784, 64))
        self.norm = nn.LayerNorm(64)
        self.second = Adapted(nn.Linear(64, 10))

    def forward(self, x):
        return self.second(F.gelu(self.norm(self.first(x.flatten(1)))))


def train(model, loader, optimizer, scheduler, bug):
    model.train()
    total = 0.0
    for images, labels in loader:
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total / len(loader)


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
    held = list(model.parameters())
    if args.bug == "adapters_frozen":
        # The wrong prefix is matched: what should learn is frozen, and only the norm is left,
        # which the optimizer does not hold.
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("norm"))
        held = [p for name, p in model.named_parameters() if not name.startswith("norm")]
    optimizer = optim.RMSprop(held, lr=2e-3)
    scheduler = optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=args.epochs * len(loader)
    )
    for epoch in range(1, args.epochs + 1):
        loss = train(model, loader, optimizer, scheduler, args.bug)
        print(f"epoch {epoch} train loss {loss:.4f}")


if __name__ == "__main__":
    main()
