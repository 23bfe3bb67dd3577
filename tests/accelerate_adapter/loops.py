"""Training loops, plain and with Accelerate, healthy and with one seeded bug each."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import traincheck_plugin
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.trace.reader import open_run

NUM_BATCHES = 10
"""Not a multiple of the accumulation of 4 that tests use."""


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.first(x)))))


def batches(num_batches=NUM_BATCHES, batch_size=8):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_batches * batch_size, 6, generator=generator)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def parts(optimizer_class=torch.optim.Adam):
    """Return a model, an optimizer and a schedule; the same ones every time."""
    torch.manual_seed(0)
    model = Network()
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.95)


def plain(watching=nullcontext, epochs=3, clears_first=True, num_batches=NUM_BATCHES):
    """Train without Accelerate; return the losses and the final weights."""
    model, optimizer, scheduler = parts()
    loader = batches(num_batches)
    losses = []
    with watching():
        model.train()
        for _ in range(epochs):
            for inputs, labels in loader:
                if clears_first:
                    optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                if not clears_first:
                    optimizer.zero_grad()
                losses.append(loss.item())
    return losses, weights(model)


def accelerated(
    watching=lambda accelerator: nullcontext(),
    epochs=3,
    accumulate=1,
    bug=None,
    prepares_inside=False,
    num_batches=NUM_BATCHES,
    on_batch=lambda number: None,
    logs=False,
    **options,
):
    """Train with Accelerate; return the losses and the final weights."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
    model, optimizer, scheduler = parts()
    loader = batches(num_batches)
    losses = []

    def prepare():
        nonlocal model, optimizer, scheduler, loader
        if bug == "replaced_model":
            model = Network()
        raw_scheduler, raw_loader = scheduler, loader
        model, optimizer, scheduler, loader = accelerator.prepare(
            model, optimizer, scheduler, loader
        )
        if bug == "unprepared_scheduler":
            scheduler = raw_scheduler
        if bug == "unprepared_loader":
            loader = raw_loader

    if not prepares_inside:
        prepare()
    with watching(accelerator):
        if prepares_inside:
            prepare()
        model.train()
        number = 0
        for _ in range(epochs):
            for inputs, labels in loader:
                on_batch(number)
                number += 1
                with accelerator.accumulate(model):
                    if bug == "zero_grad_first":
                        optimizer.zero_grad()
                    if bug == "model_zero_grad":
                        model.zero_grad()
                    loss = nn.functional.cross_entropy(model(inputs), labels)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    if bug not in ("zero_grad_first", "model_zero_grad", "no_zero_grad"):
                        optimizer.zero_grad()
                losses.append(loss.item())
                if logs:
                    accelerator.log({"loss": loss.item()}, step=number)
    return losses, weights(accelerator.unwrap_model(model))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def learned(trace, path):
    """Infer the invariants of a trace into a file."""
    dump_invariants(infer([open_run(trace)]).invariants, path)
    return path


def recording_plain(path, **options):
    """Train without Accelerate, recorded, and learn from it."""
    plain(lambda: traincheck_plugin.watch(output_dir=path / "trace", log=False), **options)
    return learned(path / "trace", path / "invariants.json")
