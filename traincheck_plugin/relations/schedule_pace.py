"""SchedulePaceRelation: a scheduler moves at most once for each optimizer step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

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
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.lifecycle import (
    SCALER_STEP,
    Patience,
    completed,
    first_of_each,
    is_placed,
    label,
    previous,
    skipped_steps,
)
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair, three
from traincheck_plugin.relations.role_proposer import ScheduleProposer
from traincheck_plugin.vocabulary import NONE, Int64

IN_A_ROW = 3
"""Steps before which a scheduler moved too often until that is no coincidence: a loop that skips a
step, since the loss is not finite, may move the scheduler all the same. Where no forward came in
between, so that no step was skipped, each counts for two."""


SEVERAL = 2
"""Training steps between two moves of a scheduler that does not move with each of them."""

SCALED = APIParam(api_full_name=SCALER_STEP, role="scaler")

MIN_SKIPPED = 3
"""Steps that a gradient scaler skipped in the reference which show that no schedule moves then."""

MIN_SHARE = 0.9
"""Of the steps that it made, after which a schedule moves that moves with the steps."""


class SchedulePaceRelation(Relation):
    """Between two optimizer steps each scheduler is stepped at most once for each process.

    ``forall calls b of a scheduler s, forall consecutive optimizer steps around it:
    #s.step <= world_size``, and not more in `IN_A_ROW` cycles on end, or two where no forward came
    between the calls. Frameworks step a scheduler once for each process; schedules by epochs move
    less often. With a constant n,
    ``forall training steps: not (calls a, b, c of a scheduler before it: training steps(a, b) < n
    and training steps(b, c) < n)``, nor a and b alone if they are its first. With the step of a
    gradient scaler as A, where the reference had it so, ``forall calls b of a scheduler: the last
    call of A steps an optimizer``, but for single ones. No examples are calls before the first
    optimizer step, since a run that is resumed may wind its schedulers on, and those that say where
    in its schedule the scheduler is to be.

    Catches a scheduler that is stepped with every micro-batch, by hand and by a framework, one that
    is stepped with every batch in place of every epoch, and one that moves where gradients
    overflowed and nothing was learned. Cannot see a scheduler that is stepped too rarely.
    """

    name = "SchedulePaceRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, moved, number = _parts(params)
        if step == SCALED:
            return _Skipping(moved)
        return _Monitor(step, moved) if number is None else _Spaced(step, moved, number)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, moved, number = _parts(params)
        name = short(moved.api_full_name)
        if step == SCALED:
            return f"{name} is called after no step that a gradient scaler skipped"
        if number is None:
            return f"{name} is called at most once for each {short(step.api_full_name)}"
        return f"{name} is called at most once for {number} steps of training"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        step, moved, _ = _parts(params)
        return api_plan(step, moved)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"

    def regime(self, params: tuple[Param, ...]) -> tuple[str, ...]:
        # At the end of an epoch is not where a scheduler is stepped that is stepped too often.
        return super().regime(params) if len(params) == 2 and params[0] != SCALED else ()


def _parts(params: tuple[Param, ...]) -> tuple[APIParam, APIParam, int | None]:
    """Return the APIs and the number of a hypothesis.

    Raises:
        InvariantError: it is none of this relation.
    """
    name = SchedulePaceRelation.name
    if len(params) == 2:
        return *pair(name, params, APIParam, APIParam), None
    step, moved, number = three(name, params, APIParam, APIParam, ConstantParam)
    if step == SCALED:
        raise InvariantError(f"{name} expects no number with {SCALER_STEP}, got {number.value!r}")
    if type(number.value) is not int or number.value < 1:
        raise InvariantError(f"{name} needs a number of steps, got {number.value!r}")
    return step, moved, number.value


class _Monitor(Monitor):
    """Counts the calls on each scheduler since the last step of any optimizer."""

    def __init__(self, step: APIParam, moved: APIParam) -> None:
        self._step = step.api_full_name
        self._moved = moved.api_full_name
        self._has_stepped = False
        self._counts: dict[str, int] = {}
        self._excessive: set[str] = set()
        self._num_excessive: dict[str, int] = {}
        # How many forwards there were by now, and when each scheduler moved last.
        self._num_forwards = 0
        self._forwards_at: dict[str, int] = {}

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
        forwards = window.rows_of_role("forward")
        passed = (self._num_forwards + np.searchsorted(forwards, both)).tolist()
        self._num_forwards += len(forwards)
        rows, holds, counts = [], [], []
        for row, stepped, limit, at in zip(both.tolist(), is_step, limits, passed, strict=True):
            if stepped:
                self._begin_cycle()
                continue
            if not self._has_stepped or is_placed(window, row):
                continue
            key = label(window, row)
            count = self._counts[key] = self._counts.get(key, 0) + 1
            if count == limit + 1:
                self._excessive.add(key)
                weight = 2 if at == self._forwards_at.get(key) else 1
                self._num_excessive[key] = self._num_excessive.get(key, 0) + weight
            self._forwards_at[key] = at
            rows.append(row)
            holds.append(count <= limit or self._num_excessive[key] < IN_A_ROW)
            counts.append(count)
        if not rows:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(calls.api[rows[index]])].name)
            return Explanation(
                message=f"{name} was called {counts[index]} times since the last optimizer step, "
                "for several steps in a row",
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


NO_ROWS: Int64 = np.empty(0, np.int64)


class _Moves:
    """Follows the calls of schedulers, and the training steps between two of them."""

    def __init__(self, step: APIParam, moved: APIParam) -> None:
        self._step = step.api_full_name
        self._moved = moved.api_full_name
        self._num_steps = 0
        self._last: dict[int, int] = {}

    def observe(self, window: Window) -> tuple[Int64, Int64]:
        """Return the calls that are not the first of a scheduler, and the steps since the last."""
        if not window.observed:
            self._last.clear()
            return NO_ROWS, NO_ROWS
        calls = window.calls
        rows = completed(window, window.rows_of_name(self._moved))
        steps = completed(window, window.rows_of_name(self._step))
        numbers = self._num_steps + np.searchsorted(calls.end[steps], calls.end[rows])
        self._num_steps += len(steps)
        placed = np.array([is_placed(window, row) for row in rows.tolist()], np.bool_)
        rows = rows[(numbers > 0) & ~placed]
        if not len(rows):
            return NO_ROWS, NO_ROWS
        at = window.catalog.contexts.column("step")[calls.context[rows]]
        objects = calls.object[rows]
        last = previous(objects)
        before = np.where(last == NONE, NONE, at[last])
        for index in np.flatnonzero(last == NONE).tolist():
            before[index] = self._last.get(int(objects[index]), NONE)
        self._last.update(zip(objects.tolist(), at.tolist(), strict=True))
        known = before != NONE
        return rows[known], (at - before)[known]


class _Spaced(Monitor):
    """Judges at each training step whether schedulers came too soon again before it."""

    def __init__(self, step: APIParam, moved: APIParam, number: int) -> None:
        self._step = step
        self._moved = moved
        self._number = number
        self._patience = Patience(excuses_first=False)
        self._restart()

    def _restart(self) -> None:
        self._moves = _Moves(self._step, self._moved)
        self._patience.forget()
        self._has_moved = self._is_fast = False

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._restart()
            return NO_EXAMPLES
        ends = window.calls.end
        moves = ends[completed(window, window.rows_of_name(self._moved.api_full_name))]
        steps = first_of_each(
            window, completed(window, window.rows_of_name(self._step.api_full_name))
        )
        rows, numbers = self._moves.observe(window)
        holds = numbers >= self._number
        fast = ends[rows[self._patience.kept(window.calls.object[rows], holds) & ~holds]]
        # Of each step how many there were before it, with those of earlier windows.
        at = ends[steps]
        has_moved = self._has_moved | (np.searchsorted(moves, at) > 0)
        num_fast = np.append(-int(self._is_fast), np.searchsorted(fast, at))
        is_fast = num_fast[1:] > num_fast[:-1]
        self._has_moved |= len(moves) > 0
        if len(steps):
            self._is_fast = len(fast) > num_fast[-1]
        else:
            self._is_fast |= len(fast) > 0
        steps, is_fast = steps[has_moved], is_fast[has_moved]
        return Examples.of_calls(window, steps, ~is_fast, lambda _: self._told())

    def _told(self) -> Explanation:
        name = short(self._moved.api_full_name)
        return Explanation(
            message=f"{name} was called with each of the last training steps, in a healthy run "
            f"once for {self._number} or more",
            cause=Cause(
                fact="calls of LRScheduler.step for each step",
                subjects=("LRScheduler.step",),
                text="the learning rate runs through its schedule too fast: the scheduler is "
                "stepped with every batch, and not as rarely as in a healthy run, such as once in "
                "an epoch",
            ),
        )


class _Attempt(NamedTuple):
    """A step of a gradient scaler, and what came next.

    Attributes:
        row: of the call that did.
        is_skipped: whether no optimizer stepped in it.
        has_moved: whether a scheduler came next, and not another one.
    """

    row: int
    is_skipped: bool
    has_moved: bool


class _Attempts:
    """Follows the steps of gradient scalers."""

    def __init__(self, moved: APIParam) -> None:
        self._moved = moved.api_full_name
        # Whether the last one was skipped; None where a scheduler came since.
        self._last: bool | None = None

    def observe(self, window: Window) -> Iterator[_Attempt]:
        """Yield those of which the next window shows what came next."""
        if not window.observed:
            self._last = None
            return
        scaled = window.rows_of_name(SCALER_STEP)
        if not len(scaled) and self._last is None:
            return
        steps = window.rows_of_role("step")
        skipped = set(skipped_steps(window, steps).tolist())
        moves = completed(window, window.rows_of_name(self._moved)).tolist()
        moves = [row for row in moves if not is_placed(window, row)]
        is_within = np.isin(window.calls.parent[steps], window.calls.call[scaled])
        is_attempt, is_step = set(scaled.tolist()), set(steps[~is_within].tolist())
        for row in sorted([*is_attempt, *is_step, *moves]):
            if row in is_step:
                # Of another optimizer, say, which needs no scaler.
                self._last = None if self._last is None else False
                continue
            if self._last is not None:
                yield _Attempt(row, self._last, row not in is_attempt)
            self._last = row in skipped if row in is_attempt else None


class _Skipping(Monitor):
    """Judges whether schedulers are called after steps that a gradient scaler made."""

    def __init__(self, moved: APIParam) -> None:
        self._attempts = _Attempts(moved)
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        judged = [
            one
            for one in self._attempts.observe(window)
            if one.has_moved and self._excuse.counts(not one.is_skipped)
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([not one.is_skipped for one in judged], np.bool_),
            lambda index: self._explain(window, judged[index].row),
        )

    def _explain(self, window: Window, row: int) -> Explanation:
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        return Explanation(
            message=f"{name} was called after steps that the gradient scaler skipped",
            cause=Cause(
                fact="calls of LRScheduler.step for each step",
                subjects=("LRScheduler.step",),
                text="the learning rate runs ahead of the training: the schedule moves on where "
                "gradients overflowed and the scaler skipped the step",
            ),
        )


class _Proposer(ScheduleProposer):
    """Proposes, too, that a scheduler does not move with every step, where none did.

    And that it does not where a step was skipped.
    """

    def __init__(self) -> None:
        super().__init__(SchedulePaceRelation.name)
        self._attempts: dict[APIParam, _Attempts] = {}
        # By API, of steps that were skipped or made: how often a schedule moved then, or did not.
        self._counts: dict[APIParam, Counter[tuple[bool, bool]]] = {}
        self._spaces: dict[tuple[APIParam, APIParam], _Moves] = {}
        self._least: dict[tuple[APIParam, APIParam], int] = {}

    def observe(self, window: Window) -> None:
        super().observe(window)
        for both in self.pairs():
            _, numbers = self._spaces.setdefault(both, _Moves(*both)).observe(window)
            if len(numbers):
                least = int(numbers.min())
                self._least[both] = min(self._least.get(both, least), least)
        for moved in dict.fromkeys(moved for _, moved in self.pairs()):
            counts = self._counts.setdefault(moved, Counter())
            for one in self._attempts.setdefault(moved, _Attempts(moved)).observe(window):
                counts[one.is_skipped, one.has_moved] += 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        yield from super().hypotheses()
        for moved, counts in self._counts.items():
            num_made = counts[False, True] + counts[False, False]
            is_with_steps = counts[False, True] >= MIN_SHARE * num_made
            if counts[True, False] >= MIN_SKIPPED and not counts[True, True] and is_with_steps:
                yield Hypothesis(relation=SchedulePaceRelation.name, params=(SCALED, moved))
        for both, least in self._least.items():
            if least >= SEVERAL:
                params = (*both, ConstantParam(value=SEVERAL))
                yield Hypothesis(relation=SchedulePaceRelation.name, params=params)
