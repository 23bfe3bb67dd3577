"""Sees a run as training steps with what is loaded in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, VarTypeParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.frames import frames_at, place, times_of
from traincheck_plugin.relations.loads import MODULE_LOAD, Load, loads_in
from traincheck_plugin.vocabulary import NONE, Bool, Int64

HELD, FROZEN = (("held", True),), (("requires_grad", False), ("in_model", True))
SAME_OBJECT = ("same_object", True)
"""Says nothing of what a new model or optimizer begins with."""

AFTER_LOADS = ("after_loads", True)
"""Takes what was loaded between two steps for something that is to be undone before the second."""

PARAMETER, SLOT = VAR_TYPES["parameter"], VAR_TYPES["slot"]


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a window in the order of their begins.

    Attributes:
        rows: their calls.
        begin, end, slots_begin, slots_end: positions of their frames of parameters and of slots;
            `NONE` where there is none.
        times: when they began, in numbers that put the windows of a stretch in order.
    """

    rows: Int64
    begin: Int64
    end: Int64
    slots_begin: Int64
    slots_end: Int64
    times: Int64

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Judged:
    """Examples: the calls, whether they hold, and why one does not."""

    rows: Int64
    holds: Bool
    explain: Callable[[int], Explanation]


def steps_of(window: Window) -> Steps:
    """Return the steps of *window* that show the parameters that they begin with."""
    steps: Steps | None = window.cache.get(steps_of)
    if steps is None:
        rows = window.rows_of_role("step")
        begin = frames_at(window, rows, PARAMETER, ("data", "optimizer"), is_begin=True)
        rows, begin = rows[begin != NONE], begin[begin != NONE]
        times = times_of(window, rows, place(window, begin)[2])
        order = np.argsort(times)
        rows = rows[order]
        steps = window.cache[steps_of] = Steps(
            rows=rows,
            begin=begin[order],
            end=frames_at(window, rows, PARAMETER, ("data",), is_begin=False),
            slots_begin=frames_at(window, rows, SLOT, ("data",), is_begin=True),
            slots_end=frames_at(window, rows, SLOT, ("data",), is_begin=False),
            times=times[order],
        )
    return steps


def _loads(window: Window, name: str) -> tuple[list[Load], list[int]]:
    """Return what was loaded, and before which of the steps."""
    loads = loads_in(window, name)
    if not loads:
        return [], []
    rows = np.array([load.row for load in loads])
    times = times_of(window, rows, window.calls.end[rows])
    return loads, np.searchsorted(steps_of(window).times, times).tolist()


class SteadyMonitor(Monitor):
    """What both monitors share: they see a run as steps with loads in between.

    Attributes:
        num_continued: steps at which new objects went on from where earlier ones had stopped.
    """

    LOAD: str

    def __init__(self, rule: VarTypeParam) -> None:
        self._rule = rule
        self._goes_across = SAME_OBJECT not in rule.where
        self._judges_loads = AFTER_LOADS in rule.where
        self._loads: list[Load] = []
        self.num_continued = 0

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._forget()
            self._loads.clear()
            return NO_EXAMPLES
        steps = steps_of(window)
        loads, where = _loads(window, self.LOAD)
        found = []
        start = 0
        for stop in [*where, len(steps)]:
            if start < stop:
                found += self._judge(window, steps, start, stop)
                start = stop
            self._loads += loads[:1]
            del loads[:1]
        self._leave(window)
        if not found:
            return NO_EXAMPLES
        rows = np.concatenate([judged.rows for judged in found])
        holds = np.concatenate([judged.holds for judged in found])

        def explain(index: int) -> Explanation:
            for judged in found:
                if index < len(judged.rows):
                    return judged.explain(index)
                index -= len(judged.rows)
            raise IndexError(index)

        return Examples.of_calls(window, rows, holds, explain)

    @abstractmethod
    def _judge(self, window: Window, steps: Steps, start: int, stop: int) -> list[Judged]:
        """Judge some of the steps, with nothing loaded between them, but before the first."""

    def _leave(self, window: Window) -> None:
        """Keep what the next window needs, and nothing of this one."""

    @abstractmethod
    def _forget(self) -> None:
        """Forget what the last step left: steps were left out."""

    def _why_new(self, what: str, loads: Sequence[Load]) -> str:
        """Say of a new object why it does not go on: what was loaded into it, or not."""
        # What an optimizer without any state is given, as Accelerate does, is not meant as a load.
        loads = [load for load in loads if self.LOAD == MODULE_LOAD or load.outcome != "none"]
        if not loads:
            return f"{what}: no load_state_dict gave it anything"
        load = loads[-1]
        if load.outcome == "none":
            return f"{what}: {load.text} loaded nothing, no name in the checkpoint matched"
        return f"{what}: {load.text} did not load them"


def class_of(owner: str) -> str:
    """Return ``torch.optim.Adam`` for ``torch.optim.Adam#0``."""
    return owner.partition("#")[0]
