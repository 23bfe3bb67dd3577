"""Lightning accumulates the gradients of four batches, clips them, and averages the weights."""

from __future__ import annotations

import argparse

import lightning as L
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

ACCUMULATE = 4
BUGS = {
    "shorter_last_window": (12, "accumul|micro|backward|window|fewer|incomplete"),
    "longer_than_epoch": (0, "accumul|micro|backward|window|fewer|incomplete"),
    "cleared_by_hook": (0, "clear|zero_grad|zeroed"),
    "bias_in_no_optimizer": (0, "in no optimizer|not in .* optimizer"),
}


class Autoencoder(L.LightningModule):
    def __init__(self, bug):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 96), nn.GELU(), nn.Linear(96, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 96), nn.GELU(), nn.Linear(96, 784))
        self.bug = bug
        self.losses = []

    def training_step(self, batch, batch_idx):
        images, _ = batch
        if self.bug == "cleared_by_hook":
            self.zero_grad()
        pixels = self.decoder(self.encoder(images))
        loss = F.binary_cross_entropy_with_logits(pixels, images.flatten(1))
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self):
        mean = sum(self.losses) / len(self.losses)
        print(f"epoch {self.current_epoch + 1} train loss {mean:.4f}")
        self.losses.clear()

    def configure_optimizers(self):
        weights = [p for p in self.parameters() if p.dim() > 1]
        biases = [p for p in self.parameters() if p.dim() == 1]
        groups = [{"params": weights, "weight_decay": 1e-4}]
        if self.bug != "bias_in_no_optimizer":
            groups.append({"params": biases, "weight_decay": 0.0})
        return optim.Adam(groups, lr=3e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    L.seed_everything(args.seed, verbose=False)

    # Complete windows only: Lightning divides by the full number in a shorter one, too.
    num_samples = 12 * ACCUMULATE * args.batch_size
    if args.bug == "shorter_last_window":
        num_samples += args.batch_size
    train_set, _ = load_digits(num_samples)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)

    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        accumulate_grad_batches=64 if args.bug == "longer_than_epoch" else ACCUMULATE,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Autoencoder(args.bug), loader)


if __name__ == "__main__":
    main()
