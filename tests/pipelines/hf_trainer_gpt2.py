"""The Hugging Face Trainer trains a tiny GPT-2 with adapters and gradient accumulation.

The adapters are low-rank; everything else is frozen but the norms and the embeddings. Sequences
begin with a prompt, of which nothing is learned.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D

LENGTH = 24
PROMPT = 2
MASKED = -100
BUGS = {
    "adapters_after_optimizer": (0, "in no optimizer|not in .* optimizer"),
    "adapters_not_trainable": (0, "requires_grad|frozen"),
    "zero_grad_each_micro_batch": (0, "clear|zero_grad|zeroed"),
    "scheduler_constant": (1, r"schedul|\blr\b|learning rate"),
    "labels_not_masked": (0, "masked"),
    "labels_shifted_twice": (0, "shifted"),
}


class Adapter(nn.Module):
    def __init__(self, base, rank=4):
        super().__init__()
        self.base = base
        self.lora_a = nn.Linear(base.weight.shape[0], rank, bias=False)
        self.lora_b = nn.Linear(rank, base.weight.shape[1], bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


def add_adapters(model, trainable=True):
    for block in model.transformer.h:
        for parent, name in ((block.attn, "c_attn"), (block.mlp, "c_fc")):
            base = getattr(parent, name)
            assert isinstance(base, Conv1D)
            setattr(parent, name, Adapter(base))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("ln_" in name or "wte" in name or ("lora_" in name and trainable))


class Ramps(Dataset):
    """Sequences that count up from anywhere, by one, two or three."""

    def __init__(self, count, masked=True, shifted=False):
        start = torch.randint(0, 32, (count, 1))
        pace = torch.randint(1, 4, (count, 1))
        self.tokens = (start + pace * torch.arange(LENGTH)) % 32
        self.labels = self.tokens.clone()
        if shifted:
            # The model shifts them, too.
            self.labels = nn.functional.pad(self.labels[:, 1:], (0, 1), value=MASKED)
        if masked:
            self.labels[:, :PROMPT] = MASKED

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class TrainerWithBug(Trainer):
    bug = None

    def training_step(self, model, *arguments, **options):
        if self.bug == "zero_grad_each_micro_batch":
            model.zero_grad()
        return super().training_step(model, *arguments, **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    bug = args.bug
    set_seed(args.seed)

    config = GPT2Config(
        vocab_size=32,
        n_positions=LENGTH,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    optimizers = (None, None)
    if bug == "adapters_after_optimizer":
        norms = [p for name, p in model.named_parameters() if "ln_" in name or "wte" in name]
        optimizers = (torch.optim.AdamW(norms, lr=1e-2), None)
    add_adapters(model, trainable=bug != "adapters_not_trainable")

    with tempfile.TemporaryDirectory() as folder:
        trainer = TrainerWithBug(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=args.batch_size,
                gradient_accumulation_steps=2,
                learning_rate=1e-2,
                weight_decay=0.01,
                lr_scheduler_type="constant" if bug == "scheduler_constant" else "cosine",
                logging_strategy="epoch",
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                seed=args.seed,
            ),
            train_dataset=Ramps(384, bug != "labels_not_masked", bug == "labels_shifted_twice"),
            optimizers=optimizers,
        )
        trainer.bug = bug
        trainer.train()
    for number, entry in enumerate((e for e in trainer.state.log_history if "loss" in e), start=1):
        print(f"epoch {number} train loss {float(entry['loss']):.4f}")


if __name__ == "__main__":
    main()
