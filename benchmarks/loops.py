"""One training loop for each framework: trains, watched or not, and tells how long a step took."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import repeat
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.workloads import Batch
from traincheck_plugin import watch

UNTIMED = 6
"""The first steps of every stretch, which find the recorder and the caches cold."""

Options = dict[str, Any]
Loop = Callable[[nn.Module, Batch, int, Options | None], float]
"""Trains so many steps, watched with these options (None: not at all); seconds for each step."""


class _Clock:
    """Times the steps after the untimed ones.

    Where all is done by the CPU, its time is taken, that of all threads of the process: others may
    want the machine too, and what they take is no part of a step.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._now = time.process_time if device.type == "cpu" else time.perf_counter
        self._start = 0.0

    def start(self) -> None:
        self._wait()
        self._start = self._now()

    def stop(self) -> float:
        self._wait()
        return self._now() - self._start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4)


def plain(model: nn.Module, batch: Batch, num_steps: int, options: Options | None) -> float:
    """Train as one would without a framework."""
    optimizer = _optimizer(model)
    x, target = batch
    clock = _Clock(x.device)
    with nullcontext() if options is None else watch(model, optimizer, log=False, **options):
        for step in range(UNTIMED + num_steps):
            if step == UNTIMED:
                clock.start()
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        return clock.stop() / num_steps


def accelerate(model: nn.Module, batch: Batch, num_steps: int, options: Options | None) -> float:
    """Train under Accelerate."""
    from accelerate import Accelerator
    from traincheck_accelerate import watch as watch_accelerator

    x, target = batch
    accelerator = Accelerator(cpu=x.device.type == "cpu")
    prepared, optimizer = accelerator.prepare(model, _optimizer(model))
    clock = _Clock(x.device)
    with (
        nullcontext()
        if options is None
        else watch_accelerator(accelerator, prepared, log=False, **options)
    ):
        for step in range(UNTIMED + num_steps):
            if step == UNTIMED:
                clock.start()
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(prepared(x), target))
            optimizer.step()
        return clock.stop() / num_steps


def lightning(model: nn.Module, batch: Batch, num_steps: int, options: Options | None) -> float:
    """Train under Lightning's `Trainer`."""
    import lightning as L
    from traincheck_lightning import TrainCheckCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock = _Clock(batch[0].device)
    seconds = []

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Batch, index: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return _optimizer(self)

    class Timer(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            if self.num_begun == UNTIMED:
                clock.start()
            self.num_begun += 1

        def on_train_epoch_end(self, *_: Any) -> None:
            seconds.append(clock.stop())

        num_begun = 0

    watching = [] if options is None else [TrainCheckCallback(log=False, **options)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            callbacks=[Timer(), *watching],
            accelerator="gpu" if batch[0].is_cuda else "cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), _Repeated(batch, UNTIMED + num_steps))
    return seconds[0] / num_steps


class _Repeated:
    """A loader that delivers one batch again and again."""

    def __init__(self, batch: Batch, number: int) -> None:
        self._batch = batch
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Batch]:
        return repeat(self._batch, self._number)


LOOPS: dict[str, Loop] = {"plain": plain, "lightning": lightning, "accelerate": accelerate}
