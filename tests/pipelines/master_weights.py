"""The model computes in bfloat16; the optimizer holds float32 copies, whose gradients are set."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"not_copied_back": (1, "never changed|copied|not updated")}


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
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 56), nn.SiLU(), nn.Linear(56, 10))
    model.bfloat16()
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    optimizer = optim.AdamW(masters, lr=2e-3)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            model.zero_grad()
            loss = F.cross_entropy(model(images.bfloat16()).float(), labels)
            loss.backward()
            for master, parameter in zip(masters, model.parameters(), strict=True):
                master.grad = parameter.grad.float()
            optimizer.step()
            if args.bug != "not_copied_back":
                with torch.no_grad():
                    for master, parameter in zip(masters, model.parameters(), strict=True):
                        parameter.copy_(master)
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
