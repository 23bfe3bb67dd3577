"""SchedulePaceRelation: a scheduler moves at most once for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.lifecycle import completed, is_placed, label
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair

IN_A_ROW = 3
"""Steps before which a scheduler moved too often until that is no coincidence: a loop that skips a
step, since the loss is not finite, may move the scheduler all the same."""


class SchedulePaceRelation(Relation):
    """Between two optimizer steps each scheduler is stepped at most once for each process.

    ``forall calls b of a scheduler s, forall consecutive optimizer steps around it:
    #s.step <= world_size``, and not more in `IN_A_ROW` cycles on end. Frameworks step a scheduler
    once for each process; schedules by epochs move less often. No examples are calls before the
    first optimizer step, since a run that is resumed may wind its schedulers on, and those that
    say where in its schedule the scheduler is to be.

    Catches a scheduler that is stepped with every micro-batch, by hand and by a framework.
    Cannot see a scheduler that is stepped too rarely.
    """

    name = "SchedulePaceRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*pair(self.name, params, APIParam, APIParam))

    def describe(self, params: tuple[Param, ...]) -> str:
        step, moved = pair(self.name, params, APIParam, APIParam)
        return (
            f"{short(moved.api_full_name)} is called at most once for each "
            f"{short(step.api_full_name)}"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*pair(self.name, params, APIParam, APIParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    """Counts the calls on each scheduler since the last step of any optimizer."""

    def __init__(self, step: APIParam, moved: APIParam) -> None:
        self._step = step.api_full_name
        self._moved = moved.api_full_name
        self._has_stepped = False
        self._counts: dict[str, int] = {}
        self._excessive: set[str] = set()
        self._num_excessive: dict[str, int] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._has_stepped = False
            self._num_excessive.clear()
            return NO_EXAMPLES
        calls = window.calls
        moves = completed(window, window.rows_of_name(self._moved))
        steps = completed(window, window.rows_of_name(self._step))
        both = np.sort(np.concatenate([moves, steps]))
        is_step = np.isin(both, steps).tolist()
        limits = window.catalog.contexts.column("world_size")[calls.context[both]].tolist()
        rows, holds, counts = [], [], []
        for row, stepped, limit in zip(both.tolist(), is_step, limits, strict=True):
            if stepped:
                self._begin_cycle()
                continue
            if not self._has_stepped or is_placed(window, row):
                continue
            key = label(window, row)
            count = self._counts[key] = self._counts.get(key, 0) + 1
            if count == limit + 1:
                self._excessive.add(key)
                self._num_excessive[key] = self._num_excessive.get(key, 0) + 1
            rows.append(row)
            holds.append(count <= limit or self._num_excessive[key] < IN_A_ROW)
            counts.append(count)
        if not rows:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(calls.api[rows[index]])].name)
            return Explanation(
                message=f"{name} was called {counts[index]} times since the last optimizer step, "
                f"and too often before {IN_A_ROW} steps in a row",
                cause=Cause(
                    fact="calls of LRScheduler.step for each step",
                    subjects=("LRScheduler.step",),
                    text="the learning rate runs through its schedule too fast: the scheduler is "
                    "stepped more often than the optimizer",
                ),
            )

        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), explain
        )

    def _begin_cycle(self) -> None:
        for key in self._counts.keys() - self._excessive:
            self._num_excessive.pop(key, None)
        self._counts.clear()
        self._excessive.clear()
        self._has_stepped = True


class _Proposer(Proposer):
    """Proposes the rule for each kind of scheduler that is stepped."""

    def __init__(self) -> None:
        self._steps: dict[APIParam, None] = {}
        self._moves: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role in ("step", "scheduler"):
                found = self._steps if api.role == "step" else self._moves
                found[APIParam(api_full_name=api.general, role=api.role)] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        for step in self._steps:
            for moved in self._moves:
                yield Hypothesis(relation=SchedulePaceRelation.name, params=(step, moved))
