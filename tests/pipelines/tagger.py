"""Accelerate trains a tiny BERT to tag each token: where a span begins, and what is inside."""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import optim
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification, get_linear_schedule_with_warmup

PADDING = 0
OUTSIDE, BEGINS, INSIDE = 0, 1, 2
IGNORED = -100
BUGS = {"padding_in_labels": (0, r"padd"), "mask_inverted": (0, "inverted")}


def load_sentences(count):
    """Return sentences of words 1 to 59 with their tags; the words up to 12 begin a span of two."""
    rows = []
    for _ in range(count):
        words = torch.randint(1, 60, (int(torch.randint(5, 21, (1,))),))
        begins = words <= 12
        tags = torch.full_like(words, OUTSIDE)
        tags[1:][begins[:-1]] = INSIDE
        tags[begins] = BEGINS
        rows.append((words, tags))
    return rows


class Collator:
    def __init__(self, bug):
        self.bug = bug
        self.filler = OUTSIDE if bug == "padding_in_labels" else IGNORED

    def __call__(self, rows):
        words, tags = zip(*rows, strict=True)
        words = pad_sequence(words, batch_first=True, padding_value=PADDING)
        shown = words == PADDING if self.bug == "mask_inverted" else words != PADDING
        return {
            "input_ids": words,
            "attention_mask": shown.long(),
            "labels": pad_sequence(tags, batch_first=True, padding_value=self.filler),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    set_seed(args.seed)

    accelerator = Accelerator(cpu=True)
    loader = DataLoader(
        load_sentences(480), args.batch_size, shuffle=True, collate_fn=Collator(args.bug)
    )
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        num_labels=3,
        pad_token_id=PADDING,
    )
    model = BertForTokenClassification(config)
    optimizer = optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    scheduler = get_linear_schedule_with_warmup(optimizer, 5, args.epochs * len(loader))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
