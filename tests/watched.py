"""Tells which steps are watched, where the budget leaves out all that it may."""

from __future__ import annotations

import pytest

from traincheck_plugin.events import Window
from traincheck_plugin.session.monitor import Monitor

ATTENTION = 4

OPTIONS = {"invariants": "default", "warm_up_steps": ATTENTION, "max_overhead": 1e-9, "log": False}
"""Of a monitor that has no time to watch anything beyond what is watched in any case."""


def watched_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that tells, in their order, the training steps that monitors watch."""
    steps: list[int] = []
    write = Monitor.write

    def listening(self: Monitor, window: Window) -> None:
        steps.extend(sorted(window.steps))
        write(self, window)

    monkeypatch.setattr(Monitor, "write", listening)
    return steps
