"""Small models, healthy ones and broken ones, and the loops that train them."""

from __future__ import annotations

import logging
import warnings

import lightning as L  # noqa: N812
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = {"lightning": L, "pytorch_lightning": pytorch_lightning}
NUM_BATCHES = 10

IGNORED = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]
"""Warnings of Lightning about itself and about how small these trainings are."""


def loader(num_batches=NUM_BATCHES, *, shuffle=False):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4 * num_batches, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=4, shuffle=shuffle)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class Training:
    """What the modules of both packages share; keeps the losses."""

    def __init__(self, lr=0.01):
        super().__init__()
        torch.manual_seed(0)
        self.net = network()
        self.lr = lr
        self.losses = []

    def loss_of(self, batch):
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.losses.append(loss.item())
        return loss

    def training_step(self, batch, batch_idx):
        loss = self.loss_of(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class Classifier(Training, L.LightningModule):
    """Automatic optimization."""


class PLClassifier(Training, pytorch_lightning.LightningModule):
    """Likewise, for the other package."""


class ManualClassifier(Classifier):
    """Manual optimization, with a schedule that it steps itself."""

    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False
        self.clips = True

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss_of(batch))
        if self.clips:
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)]


class Gan(L.LightningModule):
    """Two optimizers that take turns in each batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.losses = []

    def training_step(self, batch, batch_idx):
        real, _ = batch
        for_generator, for_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), 3))

        self.toggle_optimizer(for_generator)
        score = self.discriminator(fake)
        loss = binary_cross_entropy_with_logits(score, torch.ones_like(score))
        for_generator.zero_grad()
        self.manual_backward(loss)
        for_generator.step()
        self.untoggle_optimizer(for_generator)

        self.toggle_optimizer(for_discriminator)
        scores = self.discriminator(torch.cat([real, fake.detach()]))
        truth = torch.cat([torch.ones(len(real), 1), torch.zeros(len(real), 1)])
        loss = binary_cross_entropy_with_logits(scores, truth)
        for_discriminator.zero_grad()
        self.manual_backward(loss)
        for_discriminator.step()
        self.untoggle_optimizer(for_discriminator)
        self.losses.append(loss.item())

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.generator.parameters(), lr=0.01),
            torch.optim.Adam(self.discriminator.parameters(), lr=0.01),
        )


class ForgotZeroGrad(ManualClassifier):
    """Manual optimization that never clears gradients."""

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss_of(batch))
        self.optimizers().step()
        self.lr_schedulers().step()


class FrozenBackbone(Classifier):
    """The optimizer holds a frozen backbone and nothing else."""

    def configure_optimizers(self):
        backbone = self.net[:2]
        backbone.requires_grad_(False)
        return torch.optim.AdamW(backbone.parameters(), lr=self.lr)


class ReturnsNone(Classifier):
    """Drops the loss because it carries no graph."""

    def training_step(self, batch, batch_idx):
        loss = self.loss_of(batch).detach()
        return loss if loss.requires_grad else None


class OthersParameters(Classifier):
    """The optimizer updates another model than the one that trains."""

    def configure_optimizers(self):
        self.copies = [network()]  # in a list: no part of the model
        return torch.optim.AdamW(self.copies[0].parameters(), lr=self.lr)


BUGS = [ForgotZeroGrad, FrozenBackbone, ReturnsNone, OthersParameters]


def trainer(*callbacks, package="lightning", **options):
    """Return a quiet trainer that writes nothing."""
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PACKAGES[package].Trainer(**(defaults | options))


def train_plain(module, num_epochs=3, data=None):
    """Train *module* without Lightning, in the order that PyTorch's tutorials have."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=module.lr)
    module.train()
    for _ in range(num_epochs):
        for batch in data or loader():
            optimizer.zero_grad()
            loss = module.loss_of(batch)
            loss.backward()
            optimizer.step()


def quiet_loggers():
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
