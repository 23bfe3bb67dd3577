"""Labels windows with a monitor, and cuts told runs into windows anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.builders import RunBuilder
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Param
from traincheck_plugin.relations.base import Explanation, Relation
from traincheck_plugin.stacks import stretches

Label = tuple[int, bool]


def labels(relation: Relation, params: tuple[Param, ...], windows: Sequence[Window]) -> list[Label]:
    """Return (sequence, holds) of every example, in order, however windows are joined."""
    found = _examples(relation, params, windows)
    if relation.takes_stretches:
        assert found == _examples(relation, params, list(stretches(windows)))
    return [(sequence, holds) for sequence, holds, *_ in found]


def _examples(
    relation: Relation, params: tuple[Param, ...], windows: Sequence[Window]
) -> list[tuple[int, bool, int, int, int, int, Explanation | None]]:
    monitor = relation.monitor(params)
    found = []
    for window in windows:
        examples = monitor.observe(window)
        indexes = [part.index for part in window.parts]
        positions = [0] * len(examples) if examples.position is None else examples.position
        for row in range(len(examples)):
            explanation = None if examples.holds[row] else examples.explain(row)
            assert explanation is None or explanation.message
            found.append(
                (
                    int(examples.sequence[row]),
                    bool(examples.holds[row]),
                    int(examples.context[row]),
                    int(examples.source[row]),
                    int(examples.time_ns[row]),
                    indexes[positions[row]],
                    explanation,
                )
            )
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
