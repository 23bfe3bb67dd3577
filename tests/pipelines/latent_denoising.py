"""A diffusion model of what an autoencoder makes of digits, which stays as it is meanwhile."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "encoder_in_training_mode": (20, "training mode"),
    "noise_drawn_anew": (20, r"draw"),
    "encoder_trained_on": (20, r"trains|not frozen|optimizer"),
}


class Autoencoder(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, width, 4, 2, 1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(width, 16, 4, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1),
        )

    def forward(self, images):
        return self.decoder(self.encoder(images))


class Denoiser(nn.Module):
    def __init__(self, channels=8, width=24):
        super().__init__()
        self.level = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, latents, level):
        x = self.first(latents) + self.level(level)[:, :, None, None]
        return self.last(F.silu(self.norm(x)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Autoencoder()
    optimizer = optim.Adam(model.parameters(), lr=5e-3)
    for images, _ in loader:
        optimizer.zero_grad()
        F.mse_loss(model(images), images).backward()
        optimizer.step()

    if args.bug != "encoder_in_training_mode":
        model.eval()
    denoiser = Denoiser()
    trained = [*denoiser.parameters()]
    if args.bug == "encoder_trained_on":
        trained += model.encoder.parameters()
    optimizer = optim.AdamW(trained, lr=3e-3, betas=(0.9, 0.99))
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, _ in loader:
            with torch.set_grad_enabled(args.bug == "encoder_trained_on"):
                latents = model.encoder(images)
            level = torch.rand(len(latents), 1)
            noise = torch.randn_like(latents)
            share = level[:, :, None, None]
            noisy = (1 - share) * latents + share * noise
            if args.bug == "noise_drawn_anew":
                noise = torch.randn_like(latents)
            loss = F.mse_loss(denoiser(noisy, level), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
