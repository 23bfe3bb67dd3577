"""The callback for the Hugging Face Trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.report.report import Report
from traincheck_plugin.session.monitor import Monitor
from traincheck_plugin.session.options import OnViolation, Paths, WatchOptions
from traincheck_plugin.trace.manifest import Outcome
from traincheck_transformers.attachment import Attachment


class TrainCheckCallback(TrainerCallback):
    """Watches each `Trainer.train()` and reports broken invariants in the step that breaks them.

    It has no state to save: the Trainer's own `global_step`, which checkpoints keep anyway, numbers
    the steps. So a run may be resumed with or without it, and the callback that the user holds
    stays the one that is called, even where the Trainer makes stateful ones anew.

    Args:
        invariants: files of invariants to check, or ``default`` for the bundled ones, which are
            also those of None, unless a trace is written.
        output_dir: where to write a trace to learn invariants from.
        on_violation: ``warn`` says so in the log; ``stop`` also ends the training after the step,
            ``raise`` by a `ViolationError` out of `Trainer.train()`; a function is called with
            the diagnosis.
        max_overhead: the share of the training's time that watching may take.
        every_n_steps: watch one step in so many, instead of as many as *max_overhead* allows.
        warm_up_steps: how many steps are all watched at the start, after a resumption and after
            a violation.
        parameters: patterns of names of parameters and buffers to watch, as in a shell; None: all.
        log: whether to report in the log, and to add metrics to the Trainer's logs.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        invariants: Paths | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        on_violation: OnViolation = "warn",
        max_overhead: float = 0.01,
        every_n_steps: int | None = None,
        warm_up_steps: int = WatchOptions.warm_up_steps,
        parameters: str | Sequence[str] | None = None,
        log: bool = True,
    ) -> None:
        options = WatchOptions(
            invariants=invariants,
            output_dir=output_dir,
            on_violation=on_violation,
            max_overhead=max_overhead,
            every_n_steps=every_n_steps,
            warm_up_steps=warm_up_steps,
            parameters=parameters,
            log=log,
        )
        self._monitor = Monitor(options, ends_block=False)
        self._attachment: Attachment | None = None

    @property
    def report(self) -> Report:
        """What was found in the run that is watched, or was watched last."""
        return self._monitor.report

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        monitor = self._monitor
        self._leave(None)
        inner = inner_optimizer(optimizer) if optimizer is not None else None
        monitor.load_state_dict({"step": state.global_step})
        monitor.start(
            models=() if model is None else (model,),
            optimizers=(inner,) if isinstance(inner, torch.optim.Optimizer) else (),
            rank=args.process_index,
            world_size=args.world_size,
        )
        if monitor.is_watching:
            is_logging = monitor.options.log and args.process_index == 0
            metrics = (lambda: monitor.metrics) if is_logging else None
            self._attachment = Attachment(self._leave, metrics)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._monitor.end_batch()
        if self._monitor.should_stop:
            control.should_training_stop = True

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._detach()
        self._monitor.stop()

    def _leave(self, error: BaseException | None) -> None:
        """End a run that did not end itself."""
        self._detach()
        self._monitor.stop(error, outcome=None if error is not None else _UNKNOWN)

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None


_UNKNOWN = Outcome(how="exception")
