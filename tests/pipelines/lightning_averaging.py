"""Lightning's stochastic weight averaging; at last BatchNorm alone sees the data once more."""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from digits import load_digits
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {}


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 10, 5, stride=3),
            nn.BatchNorm2d(10),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(640, 10),
        )
        self.losses = []

    def training_step(self, batch, index):
        images, labels = batch
        loss = F.cross_entropy(self.layers(images), labels)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self):
        mean = sum(self.losses) / len(self.losses)
        print(f"epoch {self.current_epoch + 1} train loss {mean:.4f}")
        self.losses.clear()

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    train_set, _ = load_digits(512)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=1, annealing_epochs=1)],
    )
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    trainer.fit(Classifier(), loader)


if __name__ == "__main__":
    main()
