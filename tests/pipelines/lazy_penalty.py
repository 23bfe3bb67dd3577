"""A GAN whose discriminator pays a gradient penalty, but only now and then, since it is dear."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}

LATENT = 16
EVERY = 4


def penalty(discriminator, real):
    real = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().sum(dim=1).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)
    generator = nn.Sequential(nn.Linear(LATENT, 64), nn.SiLU(), nn.Linear(64, 784), nn.Sigmoid())
    discriminator = nn.Sequential(nn.Linear(784, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer_g = optim.AdamW(generator.parameters(), lr=2e-4, betas=(0.0, 0.99))
    optimizer_d = optim.AdamW(discriminator.parameters(), lr=2e-4, betas=(0.0, 0.99))
    number = 0
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, _ in loader:
            real = images.flatten(1)
            fake = generator(torch.randn(len(real), LATENT))
            discriminator.requires_grad_(True)
            scores = discriminator(fake.detach()), discriminator(real)
            loss_d = F.softplus(scores[0]).mean() + F.softplus(-scores[1]).mean()
            optimizer_d.zero_grad()
            loss_d.backward()
            if number % EVERY == 0:
                (0.5 * EVERY * penalty(discriminator, real)).backward()
            optimizer_d.step()
            discriminator.requires_grad_(False)
            loss_g = F.softplus(-discriminator(fake)).mean()
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            total += loss_d.item()
            number += 1
        print(f"epoch {epoch} discriminator loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
