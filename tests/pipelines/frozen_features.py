"""A network that was trained on some digits tells features of others; a head learns from these."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {
    "features_in_training_mode": (19, "training mode"),
    "no_zero_grad": (20, "clear|zero_grad|earlier"),
}


class Features(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.maps = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.vector = nn.Sequential(nn.Flatten(), nn.Linear(432, width), nn.Dropout(0.2))

    def forward(self, images):
        return self.vector(self.maps(images))


def pretrain(features, loader):
    head = nn.Linear(64, 5)
    optimizer = optim.Adam([*features.parameters(), *head.parameters()], lr=2e-3)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(head(features(images)), labels).backward()
        optimizer.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    images, labels = load_digits(1280)[0].tensors
    is_low = labels < 5
    known = TensorDataset(
        images[is_low][: 20 * args.batch_size], labels[is_low][: 20 * args.batch_size]
    )
    other = TensorDataset(images[~is_low], labels[~is_low] - 5)
    features = Features()
    pretrain(features, DataLoader(known, batch_size=args.batch_size, shuffle=True))

    features.requires_grad_(False)
    if args.bug != "features_in_training_mode":
        features.eval()
    head = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 5))
    optimizer = optim.SGD(head.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    loader = DataLoader(other, batch_size=args.batch_size, shuffle=True, drop_last=True)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for batch, wanted in loader:
            with torch.no_grad():
                told = features(batch)
            loss = F.cross_entropy(head(told), wanted)
            if args.bug != "no_zero_grad":
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
