"""An LSTM foresees the next event of each history: the rate falls when accuracy stalls."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

KINDS = 16
IGNORED = -100
BUGS = {"padding_counts": (0, r"padd"), "classes_reshaped": (0, "permut|transpose|axes")}


class Foresight(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.events = nn.Embedding(KINDS, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, KINDS)

    def forward(self, events, mask):
        x = self.events(events) * mask.unsqueeze(2)
        hidden, _ = self.lstm(x)
        return self.head(hidden)


def load_histories(count, table):
    """Return histories of random length; mostly, an event is decided by the one before it."""
    rows = []
    for _ in range(count):
        history = [int(torch.randint(KINDS, (1,)))]
        for _ in range(int(torch.randint(4, 20, (1,)))):
            surprise = torch.rand(1) < 0.15
            history.append(int(torch.randint(KINDS, (1,)) if surprise else table[history[-1]]))
        rows.append(torch.tensor(history))
    return rows


class Collator:
    def __init__(self, filler):
        self.filler = filler

    def __call__(self, rows):
        events = pad_sequence([row[:-1] for row in rows], batch_first=True)
        mask = pad_sequence([torch.ones(len(row) - 1) for row in rows], batch_first=True)
        targets = [row[1:] for row in rows]
        return events, mask, pad_sequence(targets, batch_first=True, padding_value=self.filler)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    table = torch.randperm(KINDS)
    collate = Collator(0 if args.bug == "padding_counts" else IGNORED)
    loader = DataLoader(load_histories(320, table), args.batch_size, True, collate_fn=collate)
    validation = DataLoader(load_histories(96, table), 32, collate_fn=collate)
    model = Foresight()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.3, patience=1)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for events, mask, targets in loader:
            optimizer.zero_grad()
            logits = model(events, mask)
            scores = logits.transpose(1, 2)
            if args.bug == "classes_reshaped":
                scores = logits.reshape(scores.shape)
            loss = F.cross_entropy(scores, targets, ignore_index=IGNORED)
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        right = count = 0.0
        with torch.no_grad():
            for events, mask, targets in validation:
                correct = (model(events, mask).argmax(dim=2) == targets).float() * mask
                right += correct.sum().item()
                count += mask.sum().item()
        scheduler.step(right / count)
        print(f"epoch {epoch} train loss {total / len(loader):.4f} accuracy {right / count:.3f}")


if __name__ == "__main__":
    main()
