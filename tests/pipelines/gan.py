"""A generator and a discriminator play against each other: two models, two optimizers."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

LATENT = 32
BUGS = {
    "generator_optimizer_on_discriminator": (
        0,
        "in no optimizer|not in .* optimizer|not part of|of no module|other model",
    ),
    "detached_generator": (
        0,
        "detach|(no|without) gradient|gradient .*(None|missing)|not reach|graph",
    ),
    "no_zero_grad_discriminator": (1, "clear|zero_grad|zeroed"),
    "frozen_generator": (0, "requires_grad|frozen"),
    "generator_not_stepped": (0, "never steps|not stepped"),
    "generator_learns_from_both": (0, "not detached|too early|other loss"),
}


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 784), nn.Tanh()
        )

    def forward(self, z):
        return self.layers(z).view(-1, 1, 28, 28)


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
        )

    def forward(self, x):
        return self.layers(x).squeeze(1)


def train(generator, discriminator, loader, optimizer_g, optimizer_d, bug):
    total_g, total_d = 0.0, 0.0
    for images, _ in loader:
        real = images * 2 - 1
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        fake = generator(torch.randn(len(real), LATENT))
        shown = fake.detach()
        if bug == "generator_learns_from_both":
            # It is cleared here, and not where its own loss goes backward.
            optimizer_g.zero_grad()
            shown = generator(torch.randn(len(real), LATENT))

        if bug != "no_zero_grad_discriminator":
            optimizer_d.zero_grad()
        loss_real = F.binary_cross_entropy_with_logits(discriminator(real), ones)
        loss_fake = F.binary_cross_entropy_with_logits(discriminator(shown), zeros)
        loss_d = loss_real + loss_fake
        loss_d.backward()
        optimizer_d.step()

        if bug != "generator_learns_from_both":
            optimizer_g.zero_grad()
        judged = fake.detach() if bug == "detached_generator" else fake
        loss_g = F.binary_cross_entropy_with_logits(discriminator(judged), ones)
        loss_g.backward()
        if bug != "generator_not_stepped":
            optimizer_g.step()

        total_g += loss_g.item()
        total_d += loss_d.item()
    return total_g / len(loader), total_d / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)

    generator, discriminator = Generator(), Discriminator()
    if args.bug == "frozen_generator":
        generator.requires_grad_(False)
    of_generator = (
        discriminator if args.bug == "generator_optimizer_on_discriminator" else generator
    )
    optimizer_g = optim.Adam(of_generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_d = optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))

    for epoch in range(1, args.epochs + 1):
        loss_g, loss_d = train(generator, discriminator, loader, optimizer_g, optimizer_d, args.bug)
        print(f"epoch {epoch} generator loss {loss_g:.4f} discriminator loss {loss_d:.4f}")


if __name__ == "__main__":
    main()
