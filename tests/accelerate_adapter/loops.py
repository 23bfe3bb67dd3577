"""Training loops, plain and with Accelerate, healthy and with one seeded bug each."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from traincheck_accelerate import watch

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
    on_batch=lambda accelerator, number: None,
    scaler=None,
    **options,
):
    """Train with Accelerate; return the losses and the final weights."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
    if scaler is not None:
        # Accelerate gives fp16 on the CPU no scaler of its own.
        accelerator.native_amp = True
        accelerator.scaler = scaler
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
                on_batch(accelerator, number)
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
    return losses, weights(accelerator.unwrap_model(model))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def watching(**options):
    """Return what makes a block that watches every step, and the list of its monitors."""
    monitors = []

    @contextmanager
    def block(accelerator):
        with watch(accelerator, every_n_steps=1, **options) as monitor:
            monitors.append(monitor)
            yield

    return block, monitors


def report_of(invariants, log=False, **training):
    """Train with Accelerate, watched, and return the report."""
    block, monitors = watching(invariants=invariants, log=log)
    accelerated(block, **training)
    return monitors[0].report


def learned(trace, path):
    """Infer the invariants of a trace into a file."""
    dump_invariants(infer([open_run(trace)]).invariants, path)
    return path


def learned_from_plain(folder, **training):
    """Train without Accelerate, recorded; return the file of what was learned."""
    trace = folder / "plain"
    plain(lambda: traincheck_plugin.watch(output_dir=trace, log=False), **training)
    return learned(trace, folder / "plain.json")


def learned_from_accelerated(folder, **training):
    """Train with Accelerate, recorded; return the file of what was learned."""
    trace = folder / "accelerated"
    accelerated(lambda accelerator: watch(accelerator, output_dir=trace, log=False), **training)
    return learned(trace, folder / "accelerated.json")
