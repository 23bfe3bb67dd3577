"""Lightning's manual optimization: a GAN, its two optimizers toggled, one scheduler each."""

from __future__ import annotations

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

LATENT = 32
BUGS = {
    "schedulers_not_stepped": (1, r"schedul|\blr\b|learning rate"),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "generator_not_stepped": (0, "not (updated|changed)|did not change|never|no step|updated 0"),
}


class GAN(L.LightningModule):
    def __init__(self, bug):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 784), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Linear(784, 128), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(128, 1)
        )
        self.bug = bug
        self.losses = []

    def training_step(self, batch, batch_idx):
        images, _ = batch
        real = images.flatten(1) * 2 - 1
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        optimizer_g, optimizer_d = self.optimizers()

        self.toggle_optimizer(optimizer_d)
        fake = self.generator(torch.randn(len(real), LATENT)).detach()
        loss_d = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss_d = loss_d + F.binary_cross_entropy_with_logits(self.discriminator(fake), zeros)
        if self.bug != "no_zero_grad":
            optimizer_d.zero_grad()
        self.manual_backward(loss_d)
        optimizer_d.step()
        self.untoggle_optimizer(optimizer_d)

        self.toggle_optimizer(optimizer_g)
        fake = self.generator(torch.randn(len(real), LATENT))
        loss_g = F.binary_cross_entropy_with_logits(self.discriminator(fake), ones)
        if self.bug != "no_zero_grad":
            optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        if self.bug != "generator_not_stepped":
            optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)

        if self.bug != "schedulers_not_stepped":
            for scheduler in self.lr_schedulers():
                scheduler.step()
        self.losses.append(loss_d.item())

    def on_train_epoch_end(self):
        mean = sum(self.losses) / len(self.losses)
        print(f"epoch {self.current_epoch + 1} discriminator loss {mean:.4f}")
        self.losses.clear()

    def configure_optimizers(self):
        optimizers = [
            optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
            optim.Adam(self.discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999)),
        ]
        return optimizers, [optim.lr_scheduler.ExponentialLR(o, 0.99) for o in optimizers]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    L.seed_everything(args.seed, verbose=False)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, drop_last=True)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(GAN(args.bug), loader)


if __name__ == "__main__":
    main()
