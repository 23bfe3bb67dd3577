"""Contrastive learning: two towers see two views of an image; the temperature is learned."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader

BUGS = {
    "tower_not_appended": (0, "in no optimizer|not in .* optimizer"),
    "tower_under_no_grad": (0, "no_grad|(no|without) gradient|gradient .*(None|missing)|not reach"),
    "temperature_as_number": (
        0,
        "detach|(no|without) gradient|gradient .*(None|missing)|not reach",
    ),
    "one_direction": (0, "same predictions|twice|transpose"),
    "same_noise": (1, "random|noise|seed|same|repeat"),
    "two_optimizers_same_parameters": (0, "two optimizers|several optimizers|both|more than one"),
}


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), spectral_norm(nn.Linear(784, 64)), nn.ReLU(), nn.Linear(64, 32)
        )

    def forward(self, x):
        return F.normalize(self.layers(x), dim=1)


def view(images):
    return images * (torch.rand_like(images) > 0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    bug = args.bug
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(800)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)
    left, right = Tower(), Tower()
    log_scale = nn.Parameter(torch.tensor(1.6))
    held = [*left.parameters(), log_scale]
    if bug != "tower_not_appended":
        held += right.parameters()
    optimizer = optim.RMSprop(held, lr=1e-3)
    if bug == "two_optimizers_same_parameters":
        second = optim.RMSprop(right.parameters(), lr=1e-3)
    for epoch in range(1, args.epochs + 1):
        left.train()
        right.train()
        total = 0.0
        for images, _ in loader:
            if bug == "same_noise":
                state = torch.get_rng_state()
                torch.manual_seed(0)
            a = left(view(images))
            with torch.set_grad_enabled(bug != "tower_under_no_grad"):
                b = right(view(images))
            if bug == "same_noise":
                torch.set_rng_state(state)
            scale = log_scale.exp()
            if bug == "temperature_as_number":
                scale = scale.item()
            scores = scale * a @ b.T
            target = torch.arange(len(images))
            other = scores if bug == "one_direction" else scores.T
            loss = (F.cross_entropy(scores, target) + F.cross_entropy(other, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if bug == "two_optimizers_same_parameters":
                second.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
