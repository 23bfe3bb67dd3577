"""Watches the training loop of an `accelerate.Accelerator`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator

import traincheck_plugin
from traincheck_accelerate.checkpoints import Checkpoints
from traincheck_accelerate.trackers import Trackers
from traincheck_plugin.errors import ConfigError, TrainingStopped
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.session.monitor import Monitor
from traincheck_plugin.session.options import WARM_UP_STEPS, OnViolation, Paths

OBSERVED = (
    "prepare",
    "backward",
    "unscale_gradients",
    "clip_grad_norm_",
    "clip_grad_value_",
    "skip_first_batches",
    "save_state",
    "load_state",
    "free_memory",
)
"""The methods of `Accelerator` whose calls are recorded.

Not those that return a context manager, such as ``accumulate``: they return before their block
begins, so that a record of the call would hold nothing of what goes on in the block. Its
micro-batches show by their backward calls.
"""


def watch(
    accelerator: Accelerator,
    *trained: torch.nn.Module | torch.optim.Optimizer,
    invariants: Paths | None = None,
    output_dir: str | PathLike[str] | None = None,
    on_violation: OnViolation = "warn",
    max_overhead: float = 0.01,
    every_n_steps: int | None = None,
    warm_up_steps: int = WARM_UP_STEPS,
    parameters: str | Sequence[str] | None = None,
    log: bool = True,
) -> AbstractContextManager[Monitor]:
    """Watch the training that goes on inside a ``with`` block.

    Every process of a distributed run enters the block.

    Args:
        accelerator: of the training; it may have prepared the models or prepare them in the block.
        *trained: models and optimizers to watch; without a model every model that trains.
        invariants: files of invariants to check; None: the bundled ones, unless a trace is written.
        output_dir: where to write a trace to learn invariants from.
        on_violation: ``warn`` says so in the log; ``stop`` also leaves the block; ``raise`` leaves
            it by a `ViolationError`; a function is called with the diagnosis.
        max_overhead: the share of the training's time that watching may take.
        every_n_steps: watch one step in so many, instead of as many as *max_overhead* allows.
        warm_up_steps: how many first steps are all watched.
        parameters: patterns of the names of parameters and buffers to watch.
        log: whether to report in the log and to the trackers of *accelerator*.

    Returns:
        A context manager that gives the monitor.

    Raises:
        ConfigError: an argument makes no sense.
    """
    if not isinstance(accelerator, Accelerator):
        raise ConfigError(f"expected an Accelerator, got a {type(accelerator).__name__}")
    monitor = traincheck_plugin.watch(
        *(inner_optimizer(o) if isinstance(o, torch.optim.Optimizer) else o for o in trained),
        invariants=invariants,
        output_dir=output_dir,
        on_violation=on_violation,
        max_overhead=max_overhead,
        every_n_steps=every_n_steps,
        warm_up_steps=warm_up_steps,
        parameters=parameters,
        log=log,
    )
    return _Block(accelerator, monitor)


class _Block(AbstractContextManager[Monitor]):
    """Drives a monitor with the events of an accelerator."""

    def __init__(self, accelerator: Accelerator, monitor: Monitor) -> None:
        self._accelerator = accelerator
        self._monitor = monitor
        self._checkpoints = Checkpoints(accelerator, monitor)
        self._trackers = Trackers(accelerator, monitor)
        self._patches = Patches(Problems())

    def __enter__(self) -> Monitor:
        accelerator, monitor = self._accelerator, self._monitor
        # Models are found by the optimizers that hold their parameters, and when they run: what
        # was prepared need not be all that trains.
        monitor.start(
            optimizers=[inner_optimizer(one) for one in accelerator._optimizers],
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        if monitor.is_watching:
            for method in OBSERVED:
                monitor.observe(accelerator, method, f"accelerate.Accelerator.{method}")
            self._patches.set(accelerator, "end_training", self._ending(accelerator.end_training))
            self._checkpoints.attach()
            if monitor.options.log:
                self._trackers.attach(self._patches)
        return monitor

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._stop(error)
        return isinstance(error, TrainingStopped)

    def _stop(self, error: BaseException | None = None) -> None:
        self._patches.undo()
        self._checkpoints.detach()
        if self._monitor.is_watching:
            self._monitor.stop(error)
            self._trackers.finish()

    def _ending(self, end_training: Any) -> Any:
        @functools.wraps(end_training)
        def stop_and_end_training(*args: Any, **kwargs: Any) -> Any:
            # It finishes the trackers and ends the connection to the other processes.
            self._stop()
            return end_training(*args, **kwargs)

        return stop_and_end_training
