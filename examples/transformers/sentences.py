"""A tiny BERT learns to tell sentences apart, with the Trainer of Hugging Face, and is watched.

First a healthy run teaches what training does; then a run is checked with that. With --bug the
second one has a bug that raises no error and whose loss looks like any other:

    adapter   all parameters are frozen, those that the optimizer is given included
    optimizer the optimizer was made for another copy of the model
    detach    the loss is computed from features that are detached from the encoder

The model is random and so are the sentences: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from traincheck_transformers import TrainCheckCallback
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.trace.reader import open_run

BUGS = ("adapter", "optimizer", "detach")
VOCABULARY, LENGTH = 60, 10


class SentenceTrainer(Trainer):
    """Computes the loss itself, the way many do."""

    detaches = False

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        features = model.bert(**inputs).pooler_output
        if self.detaches:
            features = features.detach()
        logits = model.classifier(model.dropout(features))
        loss = cross_entropy(logits, labels)
        return (loss, {"logits": logits}) if return_outputs else loss


def build_model():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTH,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )


def load_sentences(num_sentences):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (num_sentences, LENGTH), generator=generator)
    labels = (tokens[:, 0] > VOCABULARY // 2).long()
    return [
        {"input_ids": line, "labels": label} for line, label in zip(tokens, labels, strict=True)
    ]


def train(callback, folder, bug=None):
    model = build_model()
    held = list(model.parameters())
    if bug == "adapter":
        model.requires_grad_(False)
        model.classifier.bias.requires_grad_(True)
        held = list(model.classifier.parameters())[:1]
    elif bug == "optimizer":
        held = list(build_model().parameters())
    sentences = load_sentences(96)
    trainer = SentenceTrainer(
        model,
        TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=6,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=sentences,
        eval_dataset=sentences[:16],
        optimizers=(torch.optim.AdamW(held, lr=1e-3), None),
        callbacks=[callback],
    )
    trainer.detaches = bug == "detach"
    trainer.train()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(TrainCheckCallback(output_dir=folder / "trace"), folder)
        learned = infer([open_run(str(folder / "trace"))])
        dump_invariants(learned.invariants, folder / "invariants.json")

        callback = TrainCheckCallback(invariants=folder / "invariants.json")
        train(callback, folder, args.bug)

    diagnoses = callback.report.diagnoses
    print(f"diagnoses: {len(diagnoses)}")
    for diagnosis in diagnoses:
        print(f"{diagnosis.severity}: {diagnosis.message}")


if __name__ == "__main__":
    main()
