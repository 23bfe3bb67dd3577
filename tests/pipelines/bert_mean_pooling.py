"""A tiny BERT with a head of the user's own: its pooler gets no gradient."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel, get_linear_schedule_with_warmup

BUGS = {}


LENGTH = 16


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
        )
        self.bert = BertModel(config)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens):
        return self.head(self.bert(tokens).last_hidden_state.mean(dim=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    tokens = torch.randint(4, 40, (640, LENGTH))
    labels = torch.randint(0, 2, (640,))
    tokens[torch.arange(640), torch.randint(0, LENGTH, (640,))] = labels + 2
    loader = DataLoader(TensorDataset(tokens, labels), batch_size=args.batch_size, shuffle=True)
    model = Classifier()
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = get_linear_schedule_with_warmup(optimizer, 5, args.epochs * len(loader))
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for batch, target in loader:
            loss = F.cross_entropy(model(batch), target)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
