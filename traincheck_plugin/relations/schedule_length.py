"""ScheduleLengthRelation: a schedule that is made for the steps of a run is moved with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Place,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.lifecycle import completed, is_placed, label, named_optimizer
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair
from traincheck_plugin.relations.role_proposer import ScheduleProposer
from traincheck_plugin.vocabulary import NONE

TOLERANCE = 0.02
"""How far the steps of a run may be from the length of a schedule that was made for them."""

MIN_LENGTH = 20
"""Shorter schedules may have the length of a run by chance."""

MAX_PART = 0.5
"""The part of its length that a schedule moved by where it is moved too rarely."""


class ScheduleLengthRelation(Relation):
    """A schedule as long as the steps of its optimizer is moved as often.

    ``forall schedulers s of an optimizer o, at the end of the run:
    not (length(s) = #o.step and #s.step <= length(s) / 2)``. The length is the number of moves that
    a schedule is made for: ``total_steps``, ``T_max`` or ``total_iters``. Nothing is said of a
    schedule that was told where to go on, nor of a run that was not watched as a whole.

    Catches a schedule that was made for all steps and is moved once in an epoch, so that the
    learning rate stays that of the warm-up. Cannot see one that keeps no length, such as a lambda.
    """

    name = "ScheduleLengthRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return ScheduleProposer(self.name)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, moved = pair(self.name, params, APIParam, APIParam)
        return _Monitor(step.api_full_name, moved.api_full_name)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, moved = pair(self.name, params, APIParam, APIParam)
        return (
            f"a schedule that is as long as there are calls of {short(step.api_full_name)} sees as "
            f"many of {short(moved.api_full_name)}"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*pair(self.name, params, APIParam, APIParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


@dataclass(slots=True)
class _Schedule:
    """A schedule that moved.

    Attributes:
        optimizer: label of the optimizer that it moves.
        length: that it is made for.
        number: of its moves.
        last: where it was at the last one.
    """

    optimizer: str
    length: int
    number: int
    last: Place


class _Monitor(Monitor):
    """Counts the steps of optimizers and the moves of their schedules."""

    def __init__(self, step: str, moved: str) -> None:
        self._step = step
        self._moved = moved
        self._num_steps: dict[str, int] = {}
        self._schedules: dict[str, _Schedule] = {}
        self._placed: set[str] = set()
        self._is_whole = True

    def observe(self, window: Window) -> Examples:
        self._is_whole &= window.observed
        if not self._is_whole:
            return NO_EXAMPLES
        steps = completed(window, window.rows_of_name(self._step))
        codes, numbers = np.unique(window.calls.object[steps], return_counts=True)
        for code, number in zip(codes.tolist(), numbers.tolist(), strict=True):
            if code != NONE:
                key = window.catalog.objects[code]
                self._num_steps[key] = self._num_steps.get(key, 0) + number
        rows = []
        for row in completed(window, window.rows_of_name(self._moved)).tolist():
            key, length = label(window, row), _length(window, row)
            if is_placed(window, row):
                self._placed.add(key)
            elif length is not None and length >= MIN_LENGTH:
                place, optimizer = Place.of(window, row), named_optimizer(window, row)
                before = self._schedules.get(key)
                number = 1 if before is None else before.number + 1
                self._schedules[key] = _Schedule(optimizer, length, number, place)
                rows.append(row)
        if not rows:
            return NO_EXAMPLES
        holds = np.ones(len(rows), np.bool_)
        return Examples.of_calls(
            window, np.array(rows, np.int64), holds, lambda row: Explanation(message="")
        )

    def finish(self) -> Examples:
        found = [
            (one, self._num_steps.get(one.optimizer, 0))
            for key, one in self._schedules.items()
            if self._is_whole and key not in self._placed and self._is_left(one)
        ]
        if not found:
            return NO_EXAMPLES
        return Examples.of_failures([one.last for one, _ in found], lambda i: self._told(*found[i]))

    def _is_left(self, schedule: _Schedule) -> bool:
        length = schedule.length
        off = abs(self._num_steps.get(schedule.optimizer, 0) - length)
        return off <= TOLERANCE * length and schedule.number <= MAX_PART * length

    def _told(self, schedule: _Schedule, num_steps: int) -> Explanation:
        name = short(self._moved)
        return Explanation(
            message=f"{name} was called {schedule.number} times of {schedule.length} that its "
            f"schedule is made for, and {short(schedule.optimizer)} made {num_steps} steps",
            cause=Cause(
                fact="calls of LRScheduler.step for each step",
                subjects=("LRScheduler.step",),
                text="the learning rate does not follow its schedule: it is made for as many moves "
                "as there are steps, and moved more rarely, such as once in an epoch",
            ),
        )


def _length(window: Window, row: int) -> int | None:
    """Return the moves that the scheduler of a call is made for; None where it does not tell."""
    items = window.catalog.signature(int(window.calls.outputs[row]))
    return next((int(str(item.value)) for item in items if item.path == "length"), None)
