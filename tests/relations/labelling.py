"""Labels windows with a monitor, and cuts told runs into windows anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.builders import RunBuilder
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Param
from traincheck_plugin.relations.base import Relation

Label = tuple[int, bool]


def labels(relation: Relation, params: tuple[Param, ...], windows: Sequence[Window]) -> list[Label]:
    """Return (sequence, holds) of every example, in order."""
    monitor = relation.monitor(params)
    found: list[Label] = []
    for window in windows:
        examples = monitor.observe(window)
        found += zip(examples.sequence.tolist(), examples.holds.tolist(), strict=True)
        for row in range(len(examples)):
            if not examples.holds[row]:
                assert examples.explain(row).message
    return found


def told(events: Sequence[Callable[[RunBuilder], object]], cuts: Sequence[int]) -> list[Window]:
    """Tell *events* one after the other and close a window before each position in *cuts*."""
    run = RunBuilder()
    windows = []
    for position, event in enumerate(events):
        if position in cuts:
            windows.append(run.window())
        event(run)
    windows.append(run.window())
    return windows
