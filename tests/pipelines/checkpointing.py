"""Residual blocks whose activations are computed again in backward; the stem is frozen."""

from __future__ import annotations

import argparse
import warnings

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

BUGS = {
    "reentrant_frozen_input": (
        0,
        "(no|without|had no) gradient|gradient .*(None|missing)|not reach",
    ),
    "blocks_in_list": (0, "in no (optimizer|module)|not in .* optimizer|not part of|regist"),
    "only_norms_trained": (0, "requires_grad|frozen"),
}


class Network(nn.Module):
    def __init__(self, width=64, bug=None):
        super().__init__()
        self.stem = nn.Linear(784, width).requires_grad_(False)
        blocks = [
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(3)
        ]
        self.blocks = blocks if bug == "blocks_in_list" else nn.ModuleList(blocks)
        self.head = nn.Linear(width, 10)
        self.reentrant = bug == "reentrant_frozen_input"

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    # Users overlook the only hint.
    warnings.filterwarnings("ignore", "None of the inputs have requires_grad")

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Network(bug=args.bug)
    if args.bug == "only_norms_trained":
        for module in model.modules():
            trained = isinstance(module, nn.LayerNorm)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(trained)
    optimizer = optim.Adam((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
