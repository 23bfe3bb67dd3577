"""Digits are sorted by encoder and decoder: padding, Adam, inverse square root, smoothed labels."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

PADDING, BEGIN, END, FIRST = 0, 1, 2, 3
BUGS = {
    "mask_missing": (0, "mask"),
    "padding_counts": (0, "ignore_index|padd"),
}


class Sorter(nn.Module):
    def __init__(self, bug, width=32, length=16):
        super().__init__()
        self.bug = bug
        self.source, self.target = nn.Embedding(13, width), nn.Embedding(13, width)
        self.places = nn.Embedding(length, width)
        self.body = nn.Transformer(width, 4, 2, 2, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, 13)

    def forward(self, source, given):
        length = given.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = source == PADDING
        x = self.body(
            self.source(source) + self.places.weight[: source.shape[1]],
            self.target(given) + self.places.weight[:length],
            tgt_mask=None if self.bug == "mask_missing" else mask,
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
        )
        return self.head(x)


def load_digits(count):
    rows = []
    for _ in range(count):
        digits = torch.randint(10, (int(torch.randint(4, 11, (1,))),)) + FIRST
        rows.append(
            (digits, torch.cat([torch.tensor([BEGIN]), digits.sort()[0], torch.tensor([END])]))
        )
    return rows


def collate(rows):
    sources, targets = zip(*rows, strict=True)
    return [
        nn.utils.rnn.pad_sequence(several, batch_first=True, padding_value=PADDING)
        for several in (sources, targets)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    loader = DataLoader(load_digits(320), args.batch_size, shuffle=True, collate_fn=collate)
    model = Sorter(args.bug)
    optimizer = optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / 20, (20 / (step + 1)) ** 0.5))
    ignored = -100 if args.bug == "padding_counts" else PADDING
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for source, target in loader:
            logits = model(source, target[:, :-1])
            loss = F.cross_entropy(
                logits.transpose(1, 2), target[:, 1:], ignore_index=ignored, label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
