"""The Hugging Face Trainer trains a tiny BERT with frozen positions to classify."""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

LENGTH = 16
BUGS = {
    "encoder_frozen": (0, "requires_grad|frozen"),
    "encoder_detached": (0, "detach|(no|without) gradient|gradient .*(None|missing)|not reach"),
    "optimizer_of_old_head": (0, "in no optimizer|not in .* optimizer|no longer|in no model"),
    "backward_twice": (0, "backward|twice|micro|accumul"),
}


class Sequences(Dataset):
    """Which of two markers is in it?"""

    def __init__(self, count):
        self.tokens = torch.randint(4, 40, (count, LENGTH))
        self.labels = torch.randint(0, 2, (count,))
        self.tokens[torch.arange(count), torch.randint(1, LENGTH, (count,))] = self.labels + 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class TrainerWithBug(Trainer):
    bug = None

    def compute_loss(self, model, inputs, **options):
        loss = super().compute_loss(model, inputs, **options)
        if self.bug == "backward_twice" and model.training:
            loss.backward(retain_graph=True)
        return loss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    set_seed(args.seed)

    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=2,
    )
    model = BertForSequenceClassification(config)
    model.bert.embeddings.position_embeddings.requires_grad_(False)
    optimizers = (None, None)
    if args.bug == "encoder_frozen":
        model.bert.encoder.requires_grad_(False)
    elif args.bug == "encoder_detached":
        model.bert.encoder.register_forward_hook(
            lambda module, inputs, outputs: type(outputs)(
                **{name: value.detach() for name, value in outputs.items()}
            )
        )
    elif args.bug == "optimizer_of_old_head":
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers = (torch.optim.AdamW(trained, lr=3e-3), None)
        model.classifier = torch.nn.Linear(32, 2)

    with tempfile.TemporaryDirectory() as folder:
        trainer = TrainerWithBug(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=args.batch_size,
                learning_rate=3e-3,
                warmup_steps=3,
                logging_strategy="epoch",
                eval_strategy="epoch",
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                seed=args.seed,
            ),
            train_dataset=Sequences(640),
            eval_dataset=Sequences(64),
            optimizers=optimizers,
        )
        trainer.bug = args.bug
        trainer.train()
    for number, entry in enumerate((e for e in trainer.state.log_history if "loss" in e), start=1):
        print(f"epoch {number} train loss {float(entry['loss']):.4f}")


if __name__ == "__main__":
    main()
