"""A Wasserstein GAN: five steps of the critic, its weights clipped, for one of the generator."""

from __future__ import annotations

import argparse

import torch
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}


LATENT = 16
NUM_CRITIC = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)
    generator = nn.Sequential(nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, 784), nn.Sigmoid())
    critic = nn.Sequential(nn.Linear(784, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    optimizer_g = optim.RMSprop(generator.parameters(), lr=5e-4)
    optimizer_c = optim.RMSprop(critic.parameters(), lr=5e-4)
    batches = 0
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, _ in loader:
            optimizer_c.zero_grad()
            fake = generator(torch.randn(len(images), LATENT)).detach()
            loss_c = critic(fake).mean() - critic(images.flatten(1)).mean()
            loss_c.backward()
            optimizer_c.step()
            with torch.no_grad():
                for parameter in critic.parameters():
                    parameter.clamp_(-0.05, 0.05)
            total += loss_c.item()
            batches += 1
            if batches % NUM_CRITIC == 0:
                optimizer_g.zero_grad()
                loss_g = -critic(generator(torch.randn(len(images), LATENT))).mean()
                loss_g.backward()
                optimizer_g.step()
        print(f"epoch {epoch} critic loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
