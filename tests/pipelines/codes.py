"""An autoencoder with a code book: random erasing, batches of a sampler of its own."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset, Sampler

BUGS = {
    "no_straight_through": (0, "detached|does not learn"),
    "codes_decoded": (0, "does not get to|replaced"),
    "erased_in_place": (1, "in place"),
    "order_begins_anew": (20, "same order|same batches"),
}


class Erased(Dataset):
    """Images of which a random square is blank, and the whole ones."""

    def __init__(self, images, in_place):
        self.images = images
        self.in_place = in_place

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        erased = image if self.in_place else image.clone()
        row, column = torch.randint(4, 18, (2,)).tolist()
        erased[:, row : row + 6, column : column + 6] = 0
        return erased, image


class Batches(Sampler):
    """Batches in an order that is drawn from a generator of its own."""

    def __init__(self, number, size, seed, begins_anew):
        self.number = number
        self.size = size
        self.seed = seed
        self.begins_anew = begins_anew
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        return self.number // self.size

    def __iter__(self):
        if self.begins_anew:
            self.generator.manual_seed(self.seed)
        order = torch.randperm(self.number, generator=self.generator)
        yield from order[: len(self) * self.size].view(-1, self.size).tolist()


class Coder(nn.Module):
    def __init__(self, num_codes=32, width=16, bug=None):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, width, 4, 2, 1)
        )
        self.codes = nn.Embedding(num_codes, width)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(width, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )
        nn.init.uniform_(self.codes.weight, -0.5, 0.5)
        self.bug = bug

    def forward(self, images):
        found = self.encoder(images)
        vectors = found.permute(0, 2, 3, 1)
        distances = torch.cdist(vectors.flatten(0, 2), self.codes.weight)
        nearest = self.codes(distances.argmin(dim=1).view(vectors.shape[:3])).permute(0, 3, 1, 2)
        told = F.mse_loss(nearest, found.detach()) + 0.25 * F.mse_loss(found, nearest.detach())
        if self.bug == "no_straight_through":
            return self.decoder(nearest.detach()), told
        if self.bug == "codes_decoded":
            return self.decoder(nearest), told
        return self.decoder(found + (nearest - found).detach()), told


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    images = load_digits(640)[0].tensors[0]
    sampler = Batches(len(images), args.batch_size, args.seed, args.bug == "order_begins_anew")
    data = Erased(images, args.bug == "erased_in_place")
    loader = DataLoader(data, batch_sampler=sampler)
    model = Coder(bug=args.bug)
    optimizer = optim.Adamax(model.parameters(), lr=5e-3)
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for erased, whole in loader:
            shown, told = model(erased)
            loss = F.mse_loss(shown, whole) + told
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
