"""Lightning goes on from a checkpoint, in bfloat16; accumulation and what is frozen change."""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from digits import load_digits
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"scheduled_by_steps": (1, r"schedul|\blr\b|learning rate")}


class Classifier(L.LightningModule):
    def __init__(self, bug):
        super().__init__()
        self.bug = bug
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4), nn.GroupNorm(2, 8), nn.ReLU())
        self.head = nn.Linear(8 * 6 * 6, 10)
        self.losses = []

    def on_train_epoch_start(self):
        # The stem waits until the head has found its way.
        self.stem.requires_grad_(self.current_epoch > 0)

    def training_step(self, batch, index):
        images, labels = batch
        loss = F.cross_entropy(self.head(self.stem(images).flatten(1)), labels)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self):
        mean = sum(self.losses) / len(self.losses)
        print(f"epoch {self.current_epoch + 1} train loss {mean:.4f}")
        self.losses.clear()

    def configure_optimizers(self):
        optimizer = optim.Adam(self.parameters(), lr=3e-3)
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        interval = "step" if self.bug == "scheduled_by_steps" else "epoch"
        return [optimizer], [{"scheduler": schedule, "interval": interval}]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    train_set, _ = load_digits(480)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)

    def trainer(epochs):
        return L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision="bf16-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})],
        )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        first = trainer(max(1, args.epochs - 1))
        first.fit(Classifier(args.bug), loader)
        first.save_checkpoint(path)
        if args.epochs > 1:
            trainer(args.epochs).fit(
                Classifier(args.bug), loader, ckpt_path=path, weights_only=False
            )


if __name__ == "__main__":
    main()
