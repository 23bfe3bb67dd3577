"""Tiny models and data of the tests, trained by the Trainer and by a plain loop."""

from __future__ import annotations

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from traincheck_plugin import watch
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.trace.reader import open_run

VOCABULARY, LENGTH, BATCH = 40, 8, 4
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=LENGTH, intermediate_size=64, **SMALL
        )
    )


def gpt2():
    """Its head is tied to its embedding."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_layer=2,
            n_embd=32,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


def sentences(num_samples=48, *, are_targets=False):
    """Random tokens, with a class that can be learned, or themselves as targets."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (num_samples, LENGTH), generator=generator)
    labels = tokens if are_targets else (tokens[:, 0] > VOCABULARY // 2).long()
    return [
        {"input_ids": line, "labels": label} for line, label in zip(tokens, labels, strict=True)
    ]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "report_to": [],
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    return TrainingArguments(**(settings | changes))


def trainer(folder, *callbacks, model=None, data=None, cls=Trainer, others=None, **changes):
    """Return a trainer of *model*; *others* goes to it, the rest to its arguments."""
    data = sentences() if data is None else data
    return cls(
        model=bert() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=list(callbacks),
        **(others or {}),
    )


def plain_loop(model, data, *, num_epochs=2, accumulate=1, warm_up=0):
    """Train the way that a script without a framework does.

    The learning rate goes down, or with *warm_up* from 0 up to where it then stays.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=100)
    if warm_up:
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, step / warm_up)
        )
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    for _ in range(num_epochs):
        model.train()
        optimizer.zero_grad()
        for number, batch in enumerate(loader, start=1):
            (model(**batch).loss / accumulate).backward()
            if number % accumulate == 0 or number == len(loader):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            for batch in torch.utils.data.DataLoader(data[:8], batch_size=BATCH):
                model(**batch)


def learn(path, *traces):
    """Write the invariants of *traces* to *path* and return it."""
    dump_invariants(infer([open_run(str(trace)) for trace in traces]).invariants, path)
    return path


def watched_plain_loop(trace, make_model, data, **options):
    """Return the trace of a plain loop."""
    with watch(output_dir=trace, log=False) as monitor:
        plain_loop(make_model(), data, **options)
    assert monitor.report.problems == ()
    return trace


def learn_from_plain_loops(folder, make_model, data):
    """Write what two plain loops have in common that differ in what users change most."""
    simple = watched_plain_loop(folder / "simple", make_model, data)
    other = watched_plain_loop(
        folder / "other", make_model, data, accumulate=5, warm_up=3, num_epochs=6
    )
    return learn(folder / "rules.json", simple, other)
