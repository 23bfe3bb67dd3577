"""A tiny transformer learns to add: tied embeddings, AdamW with two groups, OneCycleLR per step."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

ALPHABET = "0123456789+=;"
LENGTH = 32
BUGS = {
    "clipped_after_step": (0, "clip"),
    "untied_weights": (0, r"\btied|untie|share|same (storage|tensor|memory)|alias"),
    "tied_by_data": (0, "same memory|one in memory"),
    "missing_group": (0, "in no optimizer|not in .* optimizer"),
    "embedding_in_no_group": (0, "in no (group|optimizer)|not given to an optimizer"),
    "scheduler_never_stepped": (1, r"schedul|\blr\b|learning rate"),
    "scheduled_by_epochs": (1, r"schedul|\blr\b|learning rate"),
    "optimizer_before_replacement": (
        0,
        "in no optimizer|not in .* optimizer|no longer|not part of|of no module",
    ),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "targets_not_shifted": (0, "predict|shift"),
    "mask_missing": (0, "mask"),
}


class LanguageModel(nn.Module):
    def __init__(self, width=32, bug=None):
        super().__init__()
        self.bug = bug
        self.embedding = nn.Embedding(len(ALPHABET), width)
        self.position = nn.Parameter(torch.zeros(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(ALPHABET), bias=False)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = torch.triu(torch.full((length, length), float("-inf")), diagonal=1)
        x = self.embedding(tokens) + self.position[:length]
        return self.head(self.blocks(x, mask=None if self.bug == "mask_missing" else mask))


def load_sums(count):
    texts = []
    for _ in range(count):
        text = ""
        while len(text) <= LENGTH:
            a, b = torch.randint(0, 50, (2,)).tolist()
            text += f"{a}+{b}={a + b};"
        texts.append([ALPHABET.index(c) for c in text[: LENGTH + 1]])
    return TensorDataset(torch.tensor(texts))


def make_optimizer(model, bug):
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    if bug == "embedding_in_no_group":
        decayed = [p for p in decayed if p is not model.embedding.weight]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return optim.AdamW(groups[:1] if bug == "missing_group" else groups, lr=1e-2)


def train(model, loader, optimizer, scheduler, bug):
    model.train()
    total = 0.0
    for (tokens,) in loader:
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        targets = tokens[:, :-1] if bug == "targets_not_shifted" else tokens[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        if bug != "clipped_after_step":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if bug == "clipped_after_step":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if bug not in ("scheduler_never_stepped", "scheduled_by_epochs"):
            scheduler.step()
        total += loss.item()
    if bug == "scheduled_by_epochs":
        scheduler.step()
    return total / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    loader = DataLoader(load_sums(320), batch_size=args.batch_size, shuffle=True)

    model = LanguageModel(bug=args.bug)
    if args.bug == "untied_weights":
        # As re-initialising every Linear after tying does.
        model.head.weight = nn.Parameter(torch.randn_like(model.head.weight) * 0.1)
    elif args.bug == "tied_by_data":
        model.head.weight = nn.Parameter(torch.empty_like(model.embedding.weight))
        model.head.weight.data = model.embedding.weight.data
    optimizer = make_optimizer(model, args.bug)
    if args.bug == "optimizer_before_replacement":
        # As resizing the embeddings for new tokens does.
        model.embedding.weight = nn.Parameter(model.embedding.weight.detach().clone())
        model.head.weight = model.embedding.weight
    scheduler = OneCycleLR(optimizer, max_lr=1e-2, total_steps=args.epochs * len(loader))

    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, loader, optimizer, scheduler, args.bug)
        print(f"epoch {epoch} train loss {train_loss:.4f} lr {scheduler.get_last_lr()[0]:.6f}")


if __name__ == "__main__":
    main()
