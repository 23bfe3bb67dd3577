"""A vision transformer reads patches of digits: a class token, a warm-up by a lambda, AdamW."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

BUGS = {
    "samples_as_sequence": (0, "along the samples|batch_first|depends on the others"),
    "patches_reshaped": (0, "permut|transpose|axes"),
}
WARM_UP = 10
SIZE = 7


class PatchReader(nn.Module):
    def __init__(self, width=32, bug=None):
        super().__init__()
        self.patches = nn.Conv2d(1, width, SIZE, stride=SIZE)
        self.summary = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 1 + (28 // SIZE) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width,
            4,
            2 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=bug != "samples_as_sequence",
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, 10)
        self.bug = bug

    def forward(self, images):
        patches = self.patches(images).flatten(2)
        if self.bug == "patches_reshaped":
            patches = patches.reshape(len(images), -1, patches.shape[1])
        else:
            patches = patches.transpose(1, 2)
        summary = self.summary.expand(len(images), -1, -1)
        return self.head(self.blocks(torch.cat([summary, patches], dim=1) + self.places)[:, 0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(656)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = PatchReader(bug=args.bug)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
