"""Metrics for the trackers of an accelerator."""

from __future__ import annotations

import functools
from typing import Any

from accelerate import Accelerator

from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.session.console import say
from traincheck_plugin.session.monitor import Monitor

_KEEPS_ROW = {"wandb": {"commit": False}}
"""W&B ends a row with every call that names no step, unless it is told not to."""


class Trackers:
    """Logs the metrics of a monitor at the step that the training itself logged last.

    Without a step most trackers count calls, and with another step than the training's W&B drops
    what the training logs next: so nothing is logged before the training has named a step, except
    once, at the end.
    """

    def __init__(self, accelerator: Accelerator, monitor: Monitor) -> None:
        self._accelerator = accelerator
        self._monitor = monitor
        self._log: Any = None
        self._step: int | None = None
        self._is_waiting = False
        monitor.add_listener(self._on_diagnosis)

    def attach(self, patches: Patches) -> None:
        """Begin to follow what the training logs."""
        self._log = self._accelerator.log
        patches.set(self._accelerator, "log", self._followed(self._log))

    def finish(self) -> None:
        """Log what the run came to."""
        if self._log is not None:
            self._log_metrics()
            self._log = None

    def _followed(self, log: Any) -> Any:
        @functools.wraps(log)
        def follow(values: Any, step: int | None = None, *args: Any, **kwargs: Any) -> Any:
            result = log(values, step, *args, **kwargs)
            self._step = step
            if self._is_waiting:
                self._on_diagnosis()
            return result

        return follow

    def _on_diagnosis(self, _: Diagnosis | None = None) -> None:
        self._is_waiting = self._step is None
        if not self._is_waiting:
            self._log_metrics()

    def _log_metrics(self) -> None:
        if self._log is None or not self._accelerator.trackers:
            return
        try:
            self._log(self._monitor.metrics, step=self._step, log_kwargs=_KEEPS_ROW)
        except Exception as error:  # noqa: BLE001  # trackers are services of others
            self._log = None
            say(f"the trackers did not take the metrics: {type(error).__name__}: {error}")
