"""ScheduleMovesRelation: a scheduler that is stepped changes the learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
    VarTypeParam,
)
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
from traincheck_plugin.relations.moments import pairs
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.vocabulary import Int64

PATIENCE = 2
"""How many times as many calls as in the reference may come before the first change."""

MIN_CALLS = 10
"""Calls that may come before the first change in any case: a schedule may start slowly."""


OPTIONS = VarTypeParam(var_type=VAR_TYPES["group"], attr_name="value")


class ScheduleMovesRelation(Relation):
    """Each scheduler changes an option of its optimizer within n calls.

    ``forall schedulers s: exists i <= n: the i-th call of s.step changes v in V``. The number is
    twice that of the reference, or `MIN_CALLS`. What follows the first change is not judged:
    schedules may end in a constant, and those that look at a loss are no examples at all.

    Catches a schedule that was left out of the configuration, so that the default, a constant one,
    is stepped. Cannot see a change that is wrong.
    """

    name = "ScheduleMovesRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        moved, number = pair(self.name, params, APIParam, ConstantParam)
        if isinstance(number.value, bool) or not isinstance(number.value, int) or number.value < 1:
            raise InvariantError(f"{self.name} needs a number of calls, got {number.value!r}")
        return _Monitor(moved, number.value)

    def describe(self, params: tuple[Param, ...]) -> str:
        moved, number = pair(self.name, params, APIParam, ConstantParam)
        return (
            f"{short(moved.api_full_name)} changes an option of the optimizer within "
            f"{number.value} calls"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        attributes = frozenset({("group", "value")})
        return Plan(functions=frozenset(), attributes={"scheduler": attributes})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        # A constant schedule is a choice.
        return "info"


class _Moves:
    """Counts the calls on each scheduler until one changes something."""

    def __init__(self, moved: str) -> None:
        self._moved = moved
        self.num_idle: dict[str, int] = {}
        self._have_moved: set[str] = set()

    def forget(self) -> None:
        """Take all that is known for what moved: nobody saw it."""
        self._have_moved |= self.num_idle.keys()

    def observe(self, window: Window) -> list[tuple[int, int | None]]:
        """Return the rows of calls, each with how many came to nothing; None: one did."""
        found: list[tuple[int, int | None]] = []
        for row, changed in _changed(window, window.rows_of_name(self._moved)):
            if is_placed(window, row):
                continue
            key = label(window, row)
            if changed:
                self._have_moved.add(key)
            elif key not in self._have_moved:
                self.num_idle[key] = self.num_idle.get(key, 0) + 1
            moved = key in self._have_moved
            found.append((row, None if moved else self.num_idle[key]))
        return found

    @property
    def is_moving(self) -> bool:
        """Whether every scheduler changed something."""
        return bool(self._have_moved) and self.num_idle.keys() <= self._have_moved


def _changed(window: Window, rows: Int64) -> list[tuple[int, bool]]:
    """Return the calls that show param groups, and whether they changed an option of one."""
    found: list[tuple[int, bool]] = []
    for both in pairs(window, completed(window, rows), OPTIONS):
        before, after = both.begin.column("value"), both.end.column("value")
        if before.shape == after.shape:
            is_same = (before == after) | (np.isnan(before) & np.isnan(after))
            changed = ~is_same.all(axis=1)
        else:
            changed = np.ones(len(before), np.bool_)
        found += zip(both.begin.calls.tolist(), changed.tolist(), strict=True)
    return sorted(found)


class _Monitor(Monitor):
    def __init__(self, moved: APIParam, number: int) -> None:
        self._number = number
        self._moves = _Moves(moved.api_full_name)

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._moves.forget()
            return NO_EXAMPLES
        found = self._moves.observe(window)
        if not found:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            row, number = found[index]
            name = short(window.catalog.apis[int(window.calls.api[row])].name)
            return Explanation(
                message=f"{number} calls of {name} changed nothing, expected a change within "
                f"{self._number}",
                cause=Cause(
                    fact="a schedule does not move",
                    subjects=(name,),
                    text="the learning rate stays what it was although its scheduler is stepped",
                ),
            )

        rows = np.array([row for row, _ in found], np.int64)
        holds = np.array([number is None or number <= self._number for _, number in found])
        return Examples.of_calls(window, rows, holds, explain)


class _Proposer(Proposer):
    """Proposes the rule where every scheduler of the reference changed something."""

    def __init__(self) -> None:
        self._moves: dict[APIParam, _Moves] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role == "scheduler":
                param = APIParam(api_full_name=api.general, role=api.role)
                self._moves.setdefault(param, _Moves(api.general))
        for moves in self._moves.values():
            if window.observed:
                moves.observe(window)
            else:
                moves.forget()

    def hypotheses(self) -> Iterable[Hypothesis]:
        for param, moves in self._moves.items():
            if moves.is_moving:
                number = PATIENCE * max(moves.num_idle.values(), default=0)
                params = (param, ConstantParam(value=max(number, MIN_CALLS)))
                yield Hypothesis(relation=ScheduleMovesRelation.name, params=params)
