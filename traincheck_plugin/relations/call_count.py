"""CallCountRelation: how often something is called for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
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
from traincheck_plugin.relations.lifecycle import (
    AUTOGRAD_GRAD,
    Searches,
    completed,
    previous,
    skipped_steps,
)
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair, three
from traincheck_plugin.vocabulary import NONE, Bool, Int32, Int64, Role

FIXED: frozenset[Role] = frozenset({"clip", "scheduler"})
"""Roles whose number for each step is that of the reference."""

FREE: frozenset[Role] = frozenset({"backward"})
"""Roles whose number is everybody's choice, and stays what it was chosen to be.

Gradients that are returned, and not added up, are asked for in any number.
"""

SETTLING_CYCLES = 2
"""Cycles of a run that show what was chosen: one of them may be a short one."""


class CallCountRelation(Relation):
    """Between two calls of A, B is called n times, and fewer at most once in a row.

    ``forall consecutive a1, a2, a3 of A: #B(a1, a2) <= n`` and
    ``#B(a1, a2) < n -> #B(a2, a3) = n``. The last, shorter accumulation window of an epoch is
    healthy; two in a row are not.

    With a constant n the number is that of the reference: one step of the scheduler for each step
    of the optimizer. Without, it is that of the first steps of the run itself: how many
    micro-batches make a step is everybody's choice, but not to be changed on the way. Calls of a
    scheduler with no backward in between count once, since frameworks step it once for each
    process. A step that a gradient scaler skipped counts as a step, but for schedulers, which must
    not move on without one.

    Catches a scheduler that is stepped with every micro-batch, or never, and an accumulation that
    steps too early at the end of an epoch. Cannot see what the calls do.
    """

    name = "CallCountRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        if len(params) == 2:
            return _Monitor(*pair(self.name, params, APIParam, APIParam), None)
        step, counted, number = three(self.name, params, APIParam, APIParam, ConstantParam)
        if isinstance(number.value, bool) or not isinstance(number.value, int) or number.value < 1:
            raise InvariantError(f"{self.name} needs a number of calls, got {number.value!r}")
        return _Monitor(step, counted, number.value)

    def describe(self, params: tuple[Param, ...]) -> str:
        if len(params) == 2:
            step, counted = pair(self.name, params, APIParam, APIParam)
            how = "equally often"
        else:
            step, counted, number = three(self.name, params, APIParam, APIParam, ConstantParam)
            how = _times(number.value)
        return (
            f"{short(counted.api_full_name)} is called {how} for each {short(step.api_full_name)}"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*(param for param in params if isinstance(param, APIParam)))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Counter:
    """Counts the calls of B in each cycle of A, for each object that A is called on."""

    def __init__(self, step: APIParam, counted: APIParam) -> None:
        self._step = step.api_full_name
        self._counted = counted.api_full_name
        self._is_scheduler = counted.role == "scheduler"
        # An optimizer that searches goes backward as often as it takes.
        self._searches = Searches() if counted.role == "backward" else None
        self._total = 0
        self._at_last: dict[int, int] = {}
        self._last_counted = self._last_backward = -1

    def forget(self) -> None:
        """Start anew after a stretch that was not observed."""
        self._at_last.clear()

    def observe(self, window: Window, start: int = 0) -> tuple[Int64, Int64]:
        """Return the rows of A that end a cycle, and the counts of the cycles.

        Args:
            window: the next one.
            start: row of the first call that counts.
        """
        calls = window.calls
        counted = self._ends(window, start)
        rows = completed(window, window.rows_of_name(self._step))
        # A scaler does not say whose step it left out: all begin anew.
        skipped = rows[:0] if self._is_scheduler else skipped_steps(window, rows)
        rows, skipped = _since(rows, start), _since(skipped, start)
        totals = self._total + np.searchsorted(counted, calls.end[rows])
        objects = calls.object[rows]
        last = previous(objects)
        before = np.where(last == NONE, NONE, totals[last])
        for index in np.flatnonzero(last == NONE).tolist():
            before[index] = self._at_last.get(int(objects[index]), NONE)
        known = before != NONE
        self._at_last.update(zip(objects.tolist(), totals.tolist(), strict=True))
        if len(skipped):
            at_skip = self._total + np.searchsorted(counted, calls.end[skipped])
            # The last skipped step before each; the first stands for none.
            at_skip = np.concatenate([[NONE], at_skip])
            before = np.maximum(before, at_skip[np.searchsorted(skipped, rows)])
            for target, total in self._at_last.items():
                self._at_last[target] = max(total, int(at_skip[-1]))
        self._total += len(counted)
        if self._searches is not None:
            self._searches.observe(window, rows)
            known &= ~self._searches.at(window, rows)
        return rows[known], (totals - before)[known]

    def _ends(self, window: Window, start: int) -> Int64:
        """Return when the calls that count ended."""
        calls = window.calls
        ends = calls.end[_since(window.rows_of_name(self._counted), start)]
        if not self._is_scheduler:
            return ends
        backwards = calls.end[_since(window.rows_of_role("backward"), start)]
        marks = np.concatenate([[self._last_backward], backwards])
        # The first call after a backward counts, those that follow it do not.
        last = np.concatenate([[self._last_counted], ends[:-1]])[: len(ends)]
        is_first = marks[np.searchsorted(marks, ends) - 1] > last
        self._last_backward = int(marks[-1])
        if len(ends):
            self._last_counted = int(ends[-1])
        return ends[is_first]


def _since(rows: Int64, start: int) -> Int64:
    return rows[np.searchsorted(rows, start) :] if start else rows


class _Monitor(Monitor):
    def __init__(self, step: APIParam, counted: APIParam, number: int | None) -> None:
        self._counted = counted
        self._number = number
        self._counter = _Counter(step, counted)
        self._usual: dict[int, list[int]] = {}
        self._was_short: dict[int, bool] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._counter.forget()
            self._was_short.clear()
            return NO_EXAMPLES
        rows, counts = self._counter.observe(window)
        expected = self._expected(window.calls.object[rows], counts)
        judged = expected != NONE
        rows, counts, expected = rows[judged], counts[judged], expected[judged]
        if not len(rows):
            return NO_EXAMPLES
        is_short = counts < expected
        holds = (counts <= expected) & ~(is_short & self._followed(window, rows, is_short))

        def explain(index: int) -> Explanation:
            count, usual = int(counts[index]), int(expected[index])
            step = short(window.catalog.apis[int(window.calls.api[rows[index]])].name)
            counted = short(self._counted.api_full_name)
            times = "not called" if count == 0 else f"called {_times(count)}"
            return Explanation(
                message=f"{counted} was {times} for one {step}, expected {_times(usual)}",
                cause=Cause(
                    fact=f"calls of {counted} for each step",
                    subjects=(counted,),
                    text=_why(self._counted.role, count, usual),
                ),
            )

        return Examples.of_calls(window, rows, holds, explain)

    def _followed(self, window: Window, rows: Int64, is_short: Bool) -> Bool:
        """Return which cycles follow one of the same object that was short."""
        objects = window.calls.object[rows]
        last = previous(objects)
        followed: Bool = (last != NONE) & is_short[last]
        for index in np.flatnonzero(last == NONE).tolist():
            followed[index] = self._was_short.get(int(objects[index]), False)
        self._was_short.update(zip(objects.tolist(), is_short.tolist(), strict=True))
        return followed

    def _expected(self, objects: Int32, counts: Int64) -> Int64:
        """Return how many calls each cycle should have; `NONE` where that is not known."""
        if self._number is not None:
            return np.full(len(counts), self._number)
        expected = np.full(len(counts), NONE, np.int64)
        for target in dict.fromkeys(objects.tolist()):
            usual = self._usual.setdefault(target, [])
            own = np.flatnonzero(objects == target)
            settling = own[: SETTLING_CYCLES - len(usual)]
            usual += counts[settling].tolist()
            # What is called now and then only follows a rule of its own.
            if min(usual) > 0:
                expected[own[len(settling) :]] = max(usual)
        return expected


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _why(role: Role | None, number: int, expected: int) -> str:
    if role == "backward":
        if number < expected:
            return "steps are taken before their micro-batches are complete"
        return "more micro-batches than before add up until a step is taken"
    if role == "scheduler":
        if number < expected:
            return "the learning rate does not follow its schedule: the scheduler is not stepped"
        return "the learning rate runs through its schedule too fast"
    return f"called {'more' if number > expected else 'less'} often than in a healthy run"


class _Proposer(Proposer):
    """Proposes for each pair of APIs the greatest count that a cycle had."""

    def __init__(self) -> None:
        self._counters: dict[tuple[APIParam, APIParam], _Counter] = {}
        self._most: dict[tuple[APIParam, APIParam], int] = {}
        self._steps: dict[APIParam, None] = {}
        self._counted: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        # What is new counts from the window on in which it is called first.
        starts: dict[APIParam, int] = {}
        for code in window.api_codes:
            api = window.catalog.apis[code]
            known = self._steps if api.role == "step" else self._counted
            param = APIParam(api_full_name=api.general, role=api.role)
            if api.role not in {"step", *FIXED, *FREE} or api.name == AUTOGRAD_GRAD:
                continue
            if param not in known:
                known[param] = None
                first = window.start_of(window.rows_of_name(api.general)[0])
                starts[param] = first
        for both in ((step, counted) for step in self._steps for counted in self._counted):
            counter = self._counters.setdefault(both, _Counter(*both))
            if not window.observed:
                counter.forget()
                continue
            start = max(starts.get(param, 0) for param in both)
            _, counts = counter.observe(window, start)
            if len(counts):
                self._most[both] = max(self._most.get(both, 0), int(counts.max()))

    def hypotheses(self) -> Iterable[Hypothesis]:
        for (step, counted), most in self._most.items():
            if most > 0:
                number = (ConstantParam(value=most),) if counted.role in FIXED else ()
                params: tuple[Param, ...] = (step, counted, *number)
                yield Hypothesis(relation=CallCountRelation.name, params=params)
