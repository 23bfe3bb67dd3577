"""Words are spelled letter by letter by a causal encoder: padding, Adam, warm-up."""

from __future__ import annotations

import argparse
import pydoc_data.topics
import re

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

LONGEST = 14
PADDING, BEGIN, END = 0, 1, 2
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIZE = 3 + len(LETTERS)
BUGS = {"padding_counts": (0, r"padd")}


class Language(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.tokens = nn.Embedding(SIZE, width, padding_idx=PADDING)
        self.places = nn.Embedding(LONGEST + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.1, batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SIZE)

    def forward(self, tokens, padding):
        length = tokens.shape[1]
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.tokens(tokens) + self.places.weight[:length]
        x = self.body(x, mask=later, src_key_padding_mask=padding)
        return self.head(self.norm(x))


def load_words(count):
    """Return words of what Python says of itself, each with a beginning and an end."""
    text = " ".join(pydoc_data.topics.topics.values()).lower()
    words = sorted(set(re.findall(rf"\b[a-z]{{2,{LONGEST}}}\b", text)))
    chosen = torch.randperm(len(words))[:count]
    return [
        torch.tensor([BEGIN, *(LETTERS.index(letter) + 3 for letter in words[index]), END])
        for index in chosen
    ]


def collate(words):
    return pad_sequence(words, batch_first=True, padding_value=PADDING)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    loader = DataLoader(load_words(640), args.batch_size, shuffle=True, collate_fn=collate)
    model = Language()
    optimizer = optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / 10, (10 / (step + 1)) ** 0.5))
    ignored = -100 if args.bug == "padding_counts" else PADDING
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for words in loader:
            given, target = words[:, :-1], words[:, 1:]
            logits = model(given, given == PADDING)
            loss = F.cross_entropy(
                logits.reshape(-1, SIZE), target.reshape(-1), ignore_index=ignored
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
