"""Digits that a data set moves and covers with noise, otherwise in each epoch, by its own seeds."""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

BUGS = {"epoch_not_set": (20, "same in each epoch|same seed")}


class Moved(Dataset):
    def __init__(self, images, labels, seed):
        self.images = images
        self.labels = labels
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        random = np.random.default_rng((self.seed, self.epoch, index))
        image = torch.roll(self.images[index], tuple(random.integers(-2, 3, 2)), dims=(1, 2))
        noise = torch.from_numpy(random.normal(0, 0.05, image.shape)).float()
        return image + noise, self.labels[index]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2), nn.InstanceNorm2d(12, affine=True), nn.PReLU()
        )
        self.classes = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, 10))

    def forward(self, x):
        return self.classes(self.features(x))


def accuracy(model, images, labels):
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(dim=1) == labels).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    moved = Moved(*train_set.tensors, args.seed)
    loader = DataLoader(moved, batch_size=args.batch_size, shuffle=True)
    model = Network()
    optimizer = optim.Adagrad(model.parameters(), lr=0.02)
    for epoch in range(1, args.epochs + 1):
        if args.bug != "epoch_not_set":
            moved.set_epoch(epoch)
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        held_out = accuracy(model, *test_set.tensors)
        print(f"epoch {epoch} train loss {total / len(loader):.4f} accuracy {held_out:.3f}")


if __name__ == "__main__":
    main()
