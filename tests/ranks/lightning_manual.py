"""Manual optimization of Lightning on two ranks, with the backward pass that averages and without.

Usage: lightning_manual.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import lightning as L  # noqa: N812
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from traincheck_lightning import TrainCheckCallback


class Manual(L.LightningModule):
    def __init__(self, *, is_buggy):
        super().__init__()
        self.automatic_optimization = False
        self.is_buggy = is_buggy
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def training_step(self, batch, _):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = (self.net(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()
        if self.is_buggy:
            loss.backward()
        else:
            self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def main():
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    for twin in ("clean", "buggy"):
        L.seed_everything(0)
        callback = TrainCheckCallback(invariants="default", output_dir=folder / twin)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_steps=16,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = TensorDataset(torch.randn(64, 4))
        trainer.fit(Manual(is_buggy=twin == "buggy"), DataLoader(data, batch_size=4))
        found = [
            [violation.message, violation.step]
            for violation in callback.report.violations
            if violation.invariant.relation == "RankConsistencyRelation"
        ]
        problems = callback.report.problems
        (folder / f"{twin}_{trainer.global_rank}.json").write_text(json.dumps([found, problems]))


if __name__ == "__main__":
    main()
