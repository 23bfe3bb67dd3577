"""The callback: translates the hooks of `Trainer` and `Fabric` into calls of a `Monitor`."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from traincheck_lightning.base import callback_base
from traincheck_plugin.annotations import annotate_stage
from traincheck_plugin.report.report import Report
from traincheck_plugin.session.console import say
from traincheck_plugin.session.monitor import PREFIX, Monitor
from traincheck_plugin.session.options import WARM_UP_STEPS, OnViolation, WatchOptions

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = callback_base()

NUM_VIOLATIONS = f"{PREFIX}violations"

_OBSERVED = ("manual_backward", "toggle_optimizer", "untoggle_optimizer")
"""Methods of `LightningModule` that manual optimization calls."""


class TrainCheckCallback(Callback):
    """Watches training for silent bugs: for ``Trainer(callbacks=[...])`` or `Fabric`.

    Args:
        invariants: files of invariants to check, or ``default`` for the bundled ones. None: those
            of ``TRAINCHECK_INVARIANTS``; without it the bundled ones, unless a trace is written.
        output_dir: where to write the trace of the run, from which invariants can be learned. None:
            ``TRAINCHECK_OUTPUT_DIR``; without it no trace is written.
        on_violation: ``warn`` says so in the log; ``stop`` also ends the training; ``raise`` ends
            it by a `ViolationError`; a function is called with the diagnosis, and what it raises
            goes into the training.
        max_overhead: the share of the training's time that watching may take.
        every_n_steps: watch one step in so many, instead of as many as *max_overhead* allows.
        warm_up_steps: how many steps are all watched at the start, after a resumption and after a
            violation.
        parameters: patterns of names of parameters and buffers to watch, as in a shell. None: all.
        log: whether to report in the log, and to the loggers of the trainer.

    Raises:
        ConfigError: an argument makes no sense.
    """

    def __init__(
        self,
        # The order counts for jsonargparse, which would take a list for a path.
        invariants: str | Sequence[str | os.PathLike[str]] | os.PathLike[str] | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        on_violation: OnViolation = "warn",
        max_overhead: float = 0.01,
        every_n_steps: int | None = None,
        warm_up_steps: int = WARM_UP_STEPS,
        parameters: str | Sequence[str] | None = None,
        log: bool = True,
    ) -> None:
        super().__init__()
        self._options = WatchOptions(
            invariants=invariants,
            output_dir=output_dir,
            on_violation=on_violation,
            max_overhead=max_overhead,
            every_n_steps=every_n_steps,
            warm_up_steps=warm_up_steps,
            parameters=parameters,
            log=log,
        )
        self._monitor = Monitor(self._options)
        self._trainer: Any = None
        self._has_begun = False
        self._num_logged = 0.0
        self._annotation: annotate_stage | None = None

    @property
    def report(self) -> Report:
        """What was found in the run that is watched, or was watched last."""
        return self._monitor.report

    def watch(self) -> Monitor:
        """Watch what happens inside a ``with`` block: for Fabric.

        With *on_violation* ``stop`` a violation leaves the block.

        Example:
            >>> callback = TrainCheckCallback(log=False)
            >>> with callback.watch() as monitor:
            ...     pass
            >>> monitor.report.violations
            ()
        """
        if not self._monitor.is_watching:
            self._begin_fabric()
        return self._monitor

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        self._trainer = trainer
        if trainer.barebones or self._yields(trainer.callbacks):
            return
        # Before there are optimizers, so that their construction is seen.
        self._begin(
            Monitor(self._options, ends_block=False),
            models=(pl_module,),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        for cls in type(pl_module).__mro__:
            if cls.__name__ == "LightningModule":
                for method in _OBSERVED:
                    self._monitor.observe(cls, method, f"lightning.pytorch.{cls.__name__}.{method}")

    def on_train_start(self, *_: Any) -> None:
        if self._trainer is None:
            if not self._monitor.is_watching and not self._yields(()):
                self._begin_fabric()
            return
        self._monitor.track_optimizers(self._trainer.optimizers)
        if not self._monitor.state_dict()["step"]:
            # Goes on after another fit, or from a checkpoint that was saved without this callback.
            self._monitor.load_state_dict({"step": _num_steps(self._trainer)})

    def on_train_batch_start(self, *_: Any) -> None:
        trainer = self._trainer
        if self._monitor.is_watching and trainer is not None and trainer.fit_loop._skip_backward:
            # `StochasticWeightAveraging` ends with an epoch that only renews the statistics of
            # batch normalisation. The optimizer steps in it, without gradients.
            self._annotation = annotate_stage("statistics")

    def on_train_batch_end(self, *_: Any) -> None:
        if not self._monitor.is_watching:
            return
        self._end_annotation()
        try:
            self._monitor.end_batch()
        finally:
            self._log_metrics()
        if self._trainer is not None and self._monitor.should_stop:
            self._trainer.should_stop = True

    def on_train_end(self, *_: Any) -> None:
        # A trainer goes on to its `teardown`.
        if self._trainer is None:
            self._monitor.stop()

    def on_exception(self, *context: Any, exception: BaseException | None = None) -> None:
        # A trainer does not call `teardown` then.
        self._end(context[-1] if context else exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self._end()

    def on_after_setup(self, fabric: Any) -> None:
        """Begin to watch: Fabric has set up a model."""
        if not self._monitor.is_watching and not self._yields(fabric._callbacks):
            self._begin_fabric()

    def on_after_optimizer_step(self, strategy: Any, optimizer: Any) -> None:
        """Begin to watch: the first step with Fabric, and nothing told of a start before."""
        if not self._has_begun and not self._yields(()):
            self._begin_fabric()

    def state_dict(self) -> dict[str, Any]:
        return self._monitor.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._monitor.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        # Strategies that spawn processes send the trainer to them, before anything is watched.
        monitor = Monitor(self._options)
        monitor.load_state_dict(self._monitor.state_dict())
        return {**self.__dict__, "_monitor": monitor}

    def _yields(self, callbacks: Sequence[Any]) -> bool:
        """Return whether to leave the watching to another of *callbacks*, or to what watches."""
        return False

    def _begin(self, monitor: Monitor, **run: Any) -> None:
        self._monitor.stop()  # a run that nobody ended
        self._monitor = monitor
        self._has_begun = True
        self._num_logged = 0.0
        monitor.start(**run)

    def _begin_fabric(self) -> None:
        monitor = Monitor(self._options)
        monitor.load_state_dict(self._monitor.state_dict())
        distributed = torch.distributed
        run = {}
        if distributed.is_available() and distributed.is_initialized():
            # The launchers of Fabric do not set `RANK`.
            run = {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
        self._begin(monitor, **run)
        # Fabric does not tell when a loop is over; the loop may.
        atexit.unregister(self._end_at_exit)
        atexit.register(self._end_at_exit)

    def _end(self, error: BaseException | None = None) -> None:
        self._end_annotation()
        self._monitor.stop(error)
        self._log_metrics(is_over=True)
        self._trainer = None

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _end_at_exit(self) -> None:
        self._end(getattr(sys, "last_value", None))

    def _log_metrics(self, *, is_over: bool = False) -> None:
        """Tell the loggers of the trainer: of violations at once, of the rest when it logs."""
        trainer = self._trainer
        if trainer is None or not (
            self._options.log and self._has_begun and trainer.is_global_zero
        ):
            return
        metrics = self._monitor.metrics
        num_violations = metrics[NUM_VIOLATIONS]
        if num_violations == self._num_logged and (
            is_over
            or trainer.fit_loop._should_accumulate()
            or not trainer._logger_connector.should_update_logs
        ):
            return
        self._num_logged = num_violations
        try:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=_num_steps(trainer))
        except Exception as error:  # noqa: BLE001  # must not end the training
            say(f"a logger did not take the metrics: {type(error).__name__}: {error}")


def _num_steps(trainer: Any) -> int:
    # Where Lightning puts what it logs itself; `global_step` counts each of several optimizers.
    steps: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return steps
