"""Lightning's automatic optimization: AdamW, cosine schedule per step, validation, checkpoints."""

from __future__ import annotations

import argparse
import tempfile

import lightning as L
import torch
import torch.nn.functional as F
from digits import load_digits
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "left_in_eval": (0, r"\beval|train(ing)? mode|training(=| is |: )False"),
    "returns_none": (0, "no gradient|gradient .*None|backward|did not change|updated 0|no loss"),
    "scheduler_not_returned": (1, r"schedul|\blr\b|learning rate"),
    "detached_features": (0, "detach|(no|without) gradient|gradient .*(None|missing)|not reach"),
    "labels_shuffled": (0, "label|shuffl|permut"),
    "validated_on_training_data": (0, "evaluated on what it is trained on|overlap"),
}


class Classifier(L.LightningModule):
    def __init__(self, lr, bug):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(576, 10)
        self.lr = lr
        self.bug = bug
        self.losses = []

    def forward(self, x):
        features = self.features(x).flatten(1)
        if self.bug == "detached_features":
            features = features.detach()
        return self.head(self.dropout(features))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        if self.bug == "labels_shuffled":
            labels = labels[torch.randperm(len(labels))]
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        self.losses.append(loss.item())
        if self.bug == "returns_none":
            return None
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self(images), labels))

    def on_train_epoch_end(self):
        mean = sum(self.losses) / len(self.losses)
        held_out = self.trainer.callback_metrics["val_loss"]
        print(f"epoch {self.current_epoch + 1} train loss {mean:.4f} validation {held_out:.4f}")
        self.losses.clear()

    def configure_optimizers(self):
        optimizer = optim.AdamW(self.parameters(), lr=self.lr)
        if self.bug == "scheduler_not_returned":
            return optimizer
        schedule = optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=int(self.trainer.estimated_stepping_batches)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    L.seed_everything(args.seed, verbose=False)

    train_set, test_set = load_digits(640, 128)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    held_out = train_set if args.bug == "validated_on_training_data" else test_set
    test_loader = DataLoader(held_out, batch_size=64)

    model = Classifier(lr=3e-3, bug=args.bug)
    if args.bug == "left_in_eval":
        model.eval()  # As after looking at the predictions of a loaded model.
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=args.epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[ModelCheckpoint(folder, monitor="val_loss")],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, train_loader, test_loader)


if __name__ == "__main__":
    main()
