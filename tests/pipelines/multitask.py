"""Two tasks take turns: a batch trains the shared trunk and one of two heads."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

BUGS = {
    "detached_features": (1, "detach"),
    "standardised_in_place": (20, "in place"),
}


class Standardised(Dataset):
    def __init__(self, images, labels, in_place):
        self.images = images
        self.labels = labels
        self.in_place = in_place

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if self.in_place:
            return image.sub_(0.13).div_(0.31), self.labels[index]
        return (image - 0.13) / 0.31, self.labels[index]


class Tasks(nn.Module):
    def __init__(self, bug=None):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU())
        self.heads = nn.ModuleDict({"digit": nn.Linear(64, 10), "odd": nn.Linear(64, 2)})
        self.bug = bug

    def forward(self, x, task):
        features = self.trunk(x)
        if self.bug == "detached_features" and task == "odd":
            features = features.detach()
        return self.heads[task](features)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    train_set = Standardised(*train_set.tensors, args.bug == "standardised_in_place")
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Tasks(args.bug)
    optimizer = optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for number, (images, labels) in enumerate(loader):
            task = "digit" if number % 2 == 0 else "odd"
            target = labels if task == "digit" else labels % 2
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images, task), target)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
