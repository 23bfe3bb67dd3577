"""The Hugging Face Trainer trains a tiny GPT-2 on sequences padded with their end token."""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

NUMBERS = 32
END = NUMBERS
LONGEST = 20
BUGS = {"padding_in_labels": (0, r"padd")}


class Ramps(Dataset):
    """Sequences that count up from anywhere, by one, two or three, until they end anywhere."""

    def __init__(self, count):
        self.rows = []
        for _ in range(count):
            start, pace = torch.randint(NUMBERS, (1,)), torch.randint(1, 4, (1,))
            length = int(torch.randint(5, LONGEST, (1,)))
            ramp = (start + pace * torch.arange(length)) % NUMBERS
            self.rows.append(torch.cat([ramp, torch.tensor([END])]))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index]}


class Collator:
    """Pads on the right, to the longest of the batch."""

    def __init__(self, bug):
        self.bug = bug

    def __call__(self, features):
        rows = [feature["input_ids"] for feature in features]
        tokens = pad_sequence(rows, batch_first=True, padding_value=END)
        # A token that ends a sequence looks like padding, but is to be learned.
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        labels = tokens.clone()
        if self.bug != "padding_in_labels":
            labels[mask == 0] = -100
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    set_seed(args.seed)

    config = GPT2Config(
        vocab_size=NUMBERS + 1,
        n_positions=LONGEST,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=GPT2LMHeadModel(config),
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=args.batch_size,
                learning_rate=5e-3,
                weight_decay=0.01,
                warmup_steps=5,
                logging_strategy="epoch",
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                seed=args.seed,
            ),
            data_collator=Collator(args.bug),
            train_dataset=Ramps(384),
        )
        trainer.train()
    for number, entry in enumerate((e for e in trainer.state.log_history if "loss" in e), start=1):
        print(f"epoch {number} train loss {float(entry['loss']):.4f}")


if __name__ == "__main__":
    main()
