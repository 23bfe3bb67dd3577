"""A diffusion model learns to tell noise from digits: the rate falls when validation stalls."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

STEPS = 40
BUGS = {
    "noise_drawn_anew": (0, r"draw"),
    "steps_drawn_anew": (0, r"draw"),
    "plateau_mode_max": (48, r"mode"),
    "no_zero_grad": (1, r"(clear|zero_grad|earlier)"),
}


class Denoiser(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.times = nn.Embedding(STEPS, width)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)

    def forward(self, noisy, steps):
        x = F.silu(self.first(noisy) + self.times(steps)[:, :, None, None])
        x = x + F.silu(self.second(self.norm(x)))
        return self.last(x)


def shrunk(images):
    """Return the images at half their size, in -1..1."""
    return F.avg_pool2d(images, 2) * 2 - 1


def noise_loss(model, images, kept, bug):
    steps = torch.randint(STEPS, (len(images),))
    noise = torch.randn_like(images)
    share = kept[steps][:, None, None, None]
    noisy = share.sqrt() * images + (1 - share).sqrt() * noise
    if bug == "noise_drawn_anew":
        noise = torch.randn_like(images)
    if bug == "steps_drawn_anew":
        steps = torch.randint(STEPS, (len(images),))
    return F.mse_loss(model(noisy, steps), noise)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    bug = args.bug
    torch.manual_seed(args.seed)

    train_set, held_out = load_digits(512, 256)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    validation = DataLoader(held_out, batch_size=64)
    kept = torch.cumprod(1 - torch.linspace(1e-3, 0.2, STEPS), dim=0)
    model = Denoiser()
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    mode = "max" if bug == "plateau_mode_max" else "min"
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, factor=0.3, patience=1)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, _ in loader:
            loss = noise_loss(model, shrunk(images), kept, bug)
            if bug != "no_zero_grad":
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            losses = [noise_loss(model, shrunk(images), kept, bug) for images, _ in validation]
        held_out_loss = torch.stack(losses).mean().item()
        scheduler.step(held_out_loss)
        rate = optimizer.param_groups[0]["lr"]
        print(
            f"epoch {epoch} train loss {total / len(loader):.4f} "
            f"validation loss {held_out_loss:.4f} next rate {rate:.1e}"
        )


if __name__ == "__main__":
    main()
