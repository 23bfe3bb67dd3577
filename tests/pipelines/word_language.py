"""A recurrent language model reads a text on end and keeps its state; time comes first."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim

BUGS = {}
NUM_WORDS = 24
LENGTH = 16


class Reader(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, width)
        self.recurrent = nn.LSTM(width, width, 2, dropout=0.1)
        self.words = nn.Linear(width, NUM_WORDS)

    def forward(self, words, state):
        read, state = self.recurrent(self.embedding(words), state)
        return self.words(read), state


def tell(number):
    """Return words of which each depends on the two before, but for some noise."""
    table = torch.randint(NUM_WORDS, (NUM_WORDS, 4), generator=torch.Generator().manual_seed(0))
    words = [0, 1]
    for noise in torch.rand(number).tolist():
        first, second = words[-2:]
        words.append(int(table[second, first % 4]) if noise < 0.9 else int(noise * 997) % NUM_WORDS)
    return torch.tensor(words)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    text = tell(8000)
    held_out, text = text[:1000], text[1000:]
    columns = text[: len(text) // args.batch_size * args.batch_size]
    columns = columns.view(args.batch_size, -1).t().contiguous()
    model = Reader()
    optimizer = optim.SGD(model.parameters(), lr=2.0)
    best = float("inf")
    for epoch in range(1, args.epochs + 1):
        model.train()
        state, total, count = None, 0.0, 0
        for start in range(0, len(columns) - 1, LENGTH):
            segment = columns[start : start + LENGTH + 1]
            if state is not None:
                state = tuple(part.detach() for part in state)
            scores, state = model(segment[:-1], state)
            loss = F.cross_entropy(scores.flatten(0, 1), segment[1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            total += loss.item()
            count += 1
        model.eval()
        with torch.no_grad():
            scores, _ = model(held_out[:-1, None], None)
            loss = F.cross_entropy(scores.flatten(0, 1), held_out[1:]).item()
        if loss > best - 0.01:
            for group in optimizer.param_groups:
                group["lr"] /= 4
        best = min(best, loss)
        print(f"epoch {epoch} train loss {total / count:.4f} held out {loss:.4f}")


if __name__ == "__main__":
    main()
