"""Characters of a text, predicted by attention by hand: AdamW, warm-up, RMSNorm, clipping."""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

LENGTH = 48
BUGS = {
    "mask_missing": (0, "mask"),
    "softmax_over_queries": (0, r"\bdim"),
    "heads_reshaped": (0, "permut|transpose|axes"),
    "layers_are_one": (0, "same module|multiplied|another name"),
}


class Attention(nn.Module):
    def __init__(self, width, heads, bug):
        super().__init__()
        self.heads, self.bug = heads, bug
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.register_buffer("seen", torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())

    def forward(self, x):
        count, length, width = x.shape
        parts = self.mix(x).view(count, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1])
        if self.bug != "mask_missing":
            scores = scores.masked_fill(~self.seen[:length, :length], float("-inf"))
        # Where a query sees nothing but what is masked, the other way round, there is no number.
        dim = 2 if self.bug == "softmax_over_queries" else 3
        weights = F.dropout(scores.softmax(dim), 0.1, self.training)
        attended = weights @ values
        if self.bug == "heads_reshaped":
            return self.out(attended.reshape(x.shape))
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads, bug):
        super().__init__()
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads, bug)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attention(self.before(x))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    def __init__(self, size, bug, width=32, heads=4, depth=2):
        super().__init__()
        self.tokens, self.places = nn.Embedding(size, width), nn.Embedding(LENGTH, width)
        blocks = [Block(width, heads, bug) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks[:1] * depth if bug == "layers_are_one" else blocks)
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, size, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def load_text():
    """Return what Python says of itself, as numbers of characters, and how many of these are."""
    topics = pydoc_data.topics.topics
    text = "".join(topics[name] for name in ("assignment", "class", "for", "function", "if"))
    characters = sorted(set(text))
    return torch.tensor([characters.index(one) for one in text]), len(characters)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    text, size = load_text()
    steps = 30
    model = Language(size, args.bug)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    total = args.epochs * steps
    scheduler = LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1 - 0.9 * step / total))
    model.train()
    for epoch in range(1, args.epochs + 1):
        summed = 0.0
        for _ in range(steps):
            starts = torch.randint(len(text) - LENGTH, (args.batch_size, 1))
            windows = text[starts + torch.arange(LENGTH + 1)]
            logits = model(windows[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, size), windows[:, 1:].reshape(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            summed += loss.item()
        print(f"epoch {epoch} train loss {summed / steps:.4f}")


if __name__ == "__main__":
    main()
