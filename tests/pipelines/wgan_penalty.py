"""A Wasserstein GAN with a gradient penalty, which needs the gradient of a gradient.

The samples of the generator are part of the graph of the critic's loss, as in many scripts: the
generator gets gradients that it does not step with, and that are cleared with every batch.
"""

from __future__ import annotations

import argparse

import torch
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"penalty_without_graph": (0, "no gradient|create_graph")}

LATENT = 16
NUM_CRITIC = 5


def penalty(critic, real, fake, bug):
    mix = torch.rand(len(real), 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(
        critic(between).sum(), between, create_graph=bug != "penalty_without_graph"
    )
    return 10 * (gradient.norm(dim=1) - 1).pow(2).mean()


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
    generator = nn.Sequential(nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, 784), nn.Sigmoid())
    critic = nn.Sequential(nn.Linear(784, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    optimizer_g = optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.9))
    optimizer_c = optim.Adam(critic.parameters(), lr=1e-4, betas=(0.0, 0.9))
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for batch, (images, _) in enumerate(loader):
            real = images.flatten(1)
            optimizer_c.zero_grad()
            fake = generator(torch.randn(len(real), LATENT))
            loss_c = critic(fake).mean() - critic(real).mean()
            loss_c = loss_c + penalty(critic, real, fake, args.bug)
            loss_c.backward()
            optimizer_c.step()
            optimizer_g.zero_grad()
            if batch % NUM_CRITIC == 0:
                loss_g = -critic(generator(torch.randn(len(real), LATENT))).mean()
                loss_g.backward()
                optimizer_g.step()
            total += loss_c.item()
        print(f"epoch {epoch} critic loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
