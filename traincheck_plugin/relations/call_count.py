"""CallCountRelation: how often something is called for each optimizer step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NONE, Int64, Role, Window
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Param,
    Scope,
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
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, three

COUNTED: frozenset[Role] = frozenset({"backward", "zero_grad", "clip", "scheduler"})
"""Roles of which a step of an optimizer has a number."""

SCALER_STEP = "torch.amp.GradScaler.step"


class CallCountRelation(Relation):
    """Between two calls of A, B is called at most n times, and fewer at most once in a row.

    ``forall consecutive a1, a2, a3 of A: #B(a1, a2) <= n`` and
    ``#B(a1, a2) < n -> #B(a2, a3) = n``. The last, shorter accumulation window of an epoch is
    healthy; two in a row are not. Fewer calls of zero_grad are no matter, since there are many ways
    to clear gradients: whether they are is judged by their state. A step that a gradient scaler
    skipped counts as a step, but for schedulers, which must not move on without one.

    Catches a scheduler that is stepped with every micro-batch, or never, and an accumulation that
    steps too early. Cannot see what the calls do.
    """

    name = "CallCountRelation"

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, counted, number = three(self.name, params, APIParam, APIParam, ConstantParam)
        if isinstance(number.value, bool) or not isinstance(number.value, int) or number.value < 1:
            raise InvariantError(f"{self.name} needs a number of calls, got {number.value!r}")
        return _Monitor(step, counted, number.value)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, counted, number = three(self.name, params, APIParam, APIParam, ConstantParam)
        times = "once" if number.value == 1 else f"{number.value} times"
        name = short(step.api_full_name)
        return f"{short(counted.api_full_name)} is called {times} for each {name}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*(param for param in params if isinstance(param, APIParam)))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"

    def scope(self, params: tuple[Param, ...]) -> Scope:
        return "pipeline"


class _Counter:
    """Counts the calls of B in each cycle of A, for each object that A is called on."""

    def __init__(self, step: APIParam, counted: APIParam) -> None:
        self._step = step.api_full_name
        self._counted = counted.api_full_name
        self._skips_count = counted.role != "scheduler"
        self._total = 0
        self._at_last: dict[int, int] = {}

    def forget(self) -> None:
        """Start anew after a stretch that was not observed."""
        self._at_last.clear()

    def observe(self, window: Window) -> tuple[Int64, Int64, Int64]:
        """Return the rows of A that end a cycle, their objects, and the counts of the cycles."""
        calls = window.calls
        counted = calls.end[window.rows_of_name(self._counted)]
        rows = window.rows_of_name(self._step)
        rows = rows[calls.exception[rows] == NONE]
        skipped = self._skipped(window, rows) if self._skips_count else rows[:0]
        attempts = np.concatenate([rows, skipped])
        attempts = attempts[np.argsort(calls.end[attempts])]
        is_skipped = np.isin(attempts, skipped)
        ended, objects, counts = [], [], []
        # Few: the optimizer steps of one window.
        before = np.searchsorted(counted, calls.end[attempts])
        for row, number, skip in zip(
            attempts.tolist(), before.tolist(), is_skipped.tolist(), strict=True
        ):
            target = int(calls.object[row])
            total = self._total + number
            if skip:
                # The scaler does not say whose step it was: all begin anew.
                self._at_last = dict.fromkeys(self._at_last, total)
                continue
            if target in self._at_last:
                ended.append(row)
                objects.append(target)
                counts.append(total - self._at_last[target])
            self._at_last[target] = total
        self._total += len(counted)
        return (
            np.array(ended, np.int64),
            np.array(objects, np.int64),
            np.array(counts, np.int64),
        )

    def _skipped(self, window: Window, steps: Int64) -> Int64:
        """Return the calls of a scaler's step in which no optimizer stepped."""
        calls = window.calls
        scaled = window.rows_of_name(SCALER_STEP)
        if not len(scaled):
            return scaled
        return scaled[~np.isin(calls.call[scaled], calls.parent[steps])]


class _Monitor(Monitor):
    def __init__(self, step: APIParam, counted: APIParam, number: int) -> None:
        self._counted = counted
        self._number = number
        self._counter = _Counter(step, counted)
        self._was_short: dict[int, bool] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._counter.forget()
            self._was_short.clear()
            return NO_EXAMPLES
        rows, objects, counts = self._counter.observe(window)
        if not len(rows):
            return NO_EXAMPLES
        holds = np.ones(len(rows), np.bool_)
        for index, (target, count) in enumerate(
            zip(objects.tolist(), counts.tolist(), strict=True)
        ):
            is_short = count < self._number and self._counted.role != "zero_grad"
            holds[index] = count <= self._number and not (
                is_short and self._was_short.get(target, False)
            )
            self._was_short[target] = is_short

        def explain(index: int) -> Explanation:
            step = short(window.catalog.apis[int(window.calls.api[rows[index]])].name)
            counted = short(self._counted.api_full_name)
            number = int(counts[index])
            times = "not called" if number == 0 else f"called {_times(number)}"
            return Explanation(
                message=f"{counted} was {times} for one {step}, expected {_times(self._number)}",
                cause=Cause(
                    fact=f"calls of {counted} for each step",
                    subjects=(counted,),
                    text=_why(self._counted.role, number, self._number),
                ),
            )

        return Examples.of_calls(window, rows, holds, explain)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _why(role: Role | None, number: int, expected: int) -> str:
    if role == "backward":
        if number < expected:
            return "steps are taken before their micro-batches are complete"
        return "more micro-batches than expected add up before a step is taken"
    if role == "scheduler":
        if number < expected:
            return "the learning rate does not follow its schedule: the scheduler is not stepped"
        return "the learning rate runs through its schedule too fast"
    if role == "zero_grad" and number > expected:
        return "gradients of earlier micro-batches are thrown away before the step uses them"
    return f"called {'more' if number > expected else 'less'} often than in a healthy run"


class _Proposer(Proposer):
    """Proposes for each pair of APIs the greatest count that a cycle had."""

    def __init__(self) -> None:
        self._counters: dict[tuple[APIParam, APIParam], _Counter] = {}
        self._most: dict[tuple[APIParam, APIParam], int] = {}
        self._steps: dict[APIParam, None] = {}
        self._counted: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role == "step":
                self._steps[APIParam(api_full_name=api.general, role=api.role)] = None
            elif api.role in COUNTED:
                self._counted[APIParam(api_full_name=api.general, role=api.role)] = None
        for pair in ((step, counted) for step in self._steps for counted in self._counted):
            counter = self._counters.setdefault(pair, _Counter(*pair))
            if not window.observed:
                counter.forget()
                continue
            _, _, counts = counter.observe(window)
            if len(counts):
                self._most[pair] = max(self._most.get(pair, 0), int(counts.max()))

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=CallCountRelation.name, params=(*pair, ConstantParam(value=most)))
            for pair, most in self._most.items()
            if most > 0
        ]
