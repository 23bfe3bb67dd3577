"""A quasi-Newton optimizer evaluates the loss several times per step, through a closure."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "no_zero_grad": (0, "clear|zero_grad|zeroed"),
    "no_backward": (0, "backward|no gradient|gradient .*None"),
    "other_model_optimizer": (
        0,
        "in no optimizer|not in .* optimizer|not part of|of no module|other model",
    ),
}


def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(1024)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)

    model = make_model()
    trained = make_model() if args.bug == "other_model_optimizer" else model
    optimizer = optim.LBFGS(trained.parameters(), lr=0.1, max_iter=4, history_size=5)

    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:

            def closure(images=images, labels=labels):
                if args.bug != "no_zero_grad":
                    optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                if args.bug != "no_backward":
                    loss.backward()
                return loss

            total += optimizer.step(closure).item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
