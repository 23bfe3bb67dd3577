"""An embedding that few samples reach is stepped with every fourth batch, all else with each."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {
    "no_zero_grad_embedding": (7, "clear|zero_grad|zeroed"),
}
NUM_WORDS, LENGTH, PERIOD = 300, 6, 4


class Classifier(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embedding = nn.Embedding(NUM_WORDS, width)
        self.layers = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, words):
        return self.layers(self.embedding(words).mean(1))


def load_words(count):
    """Bags of words, of three topics."""
    topics = torch.randint(0, 3, (count,))
    words = torch.randint(0, NUM_WORDS // 3, (count, LENGTH)) + topics[:, None] * NUM_WORDS // 3
    noise = torch.randint(0, NUM_WORDS, (count, LENGTH))
    return TensorDataset(torch.where(torch.rand(count, LENGTH) < 0.3, noise, words), topics)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    loader = DataLoader(load_words(640), batch_size=args.batch_size, shuffle=True)
    model = Classifier()
    optimizer = optim.AdamW(model.layers.parameters(), lr=5e-3)
    of_embedding = optim.SGD(model.embedding.parameters(), lr=10.0)
    number = 0
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for words, topics in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(words), topics)
            loss.backward()
            optimizer.step()
            number += 1
            if number % PERIOD == 0:
                of_embedding.step()
                if args.bug != "no_zero_grad_embedding":
                    of_embedding.zero_grad()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
