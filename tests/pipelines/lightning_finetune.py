"""Lightning's BackboneFinetuning: the backbone joins after one epoch; the run is resumed once."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning as L
import torch.nn.functional as F
from digits import load_digits
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn, optim
from torch.utils.data import DataLoader

UNFREEZE = 1
BUGS = {
    "refrozen_on_resume": (40, "requires_grad|frozen"),
    "unfrozen_not_added": (20, "in no optimizer|not in .* optimizer"),
    "frozen_norm_in_train_mode": (0, "running|buffer|BatchNorm|train(ing)? mode|statistics"),
}


class Network(L.LightningModule):
    def __init__(self, bug):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(432, 10))
        self.bug = bug
        self.losses = []

    def on_train_epoch_start(self):
        frozen = not any(p.requires_grad for p in self.backbone[0].parameters())
        if frozen and self.bug != "frozen_norm_in_train_mode":
            self.backbone.eval()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.head(self.backbone(images)), labels)
        self.losses.append(loss.item())
        return loss

    def on_train_epoch_end(self):
        mean = sum(self.losses) / len(self.losses)
        print(f"epoch {self.current_epoch + 1} train loss {mean:.4f}")
        self.losses.clear()

    def configure_optimizers(self):
        # Only what is trainable: the callback adds the backbone when it unfreezes it.
        return optim.Adam([p for p in self.parameters() if p.requires_grad], lr=2e-3)


class Finetuning(BackboneFinetuning):
    def __init__(self, bug):
        super().__init__(
            unfreeze_backbone_at_epoch=UNFREEZE,
            backbone_initial_ratio_lr=0.5,
            should_align=False,
            train_bn=False,
        )
        self.bug = bug

    def on_fit_start(self, trainer, pl_module):
        resumed = self._restarting
        super().on_fit_start(trainer, pl_module)
        # The callback freezes the backbone before every fit, a resumed one included.
        if resumed and self.bug != "refrozen_on_resume":
            self.make_trainable(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if self.bug == "unfrozen_not_added":
            if epoch == UNFREEZE:
                self.make_trainable(pl_module.backbone)
        else:
            super().finetune_function(pl_module, epoch, optimizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    L.seed_everything(args.seed, verbose=False)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)

    def trainer(epochs):
        return L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[Finetuning(args.bug)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        first = trainer(max(1, args.epochs - 1))
        first.fit(Network(args.bug), loader)
        first.save_checkpoint(path)
        if args.epochs > 1:
            trainer(args.epochs).fit(Network(args.bug), loader, ckpt_path=path, weights_only=False)


if __name__ == "__main__":
    main()
