"""GradientsUsedRelation: gradients that are cleared were used by a step before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import completed, previous, skipped_steps
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import gradient_plan, pair, three
from traincheck_plugin.vocabulary import NONE, Bool, Int32, Int64

PARAMETER = VAR_TYPES["parameter"]

CLEARED = VarTypeParam(var_type=PARAMETER, attr_name="grad", pre_value="non_zero", post_value=None)

A_LOT = 10
"""How often in a row is a lot: a critic commonly makes 5 steps for one of its generator."""

HELD, OWNED = (("held", True),), (("owned", True),)

SELECTED = HELD, OWNED
"""Whose gradients a call clears: those of an optimizer, or of a model."""


class GradientsUsedRelation(Relation):
    """Where others step between two calls that clear gradients, so does the optimizer of these.

    ``forall consecutive clears c, d on one object, forall optimizers o with gradients that are not
    zero at begin(d) and cleared by it: (exists step of another optimizer between c and d) -> exists
    step of o between c and d``, and not the other way more than n times in a row, or more than
    once where n is 0 and o has been used by then: a batch may be left out, though hardly the first
    one. A step of an optimizer that has parameters in common with o is one of o: some wrap others.
    A step that a gradient scaler skipped counts, and what is cleared within a step is no example.

    With a constant n it is what the reference had at most: a critic may step several times for one
    step of a generator, whose gradients it adds to and that are cleared meanwhile. Without, it is
    `A_LOT`.

    Catches an optimizer of two that is never stepped, and a wrong one that is stepped in its place.
    Cannot see one whose gradients are never cleared.
    """

    name = "GradientsUsedRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_parts(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        clear, number = _parts(params)
        times = "twice" if number < 2 else f"{number + 1} times"
        return (
            f"where others step, no optimizer has its gradients cleared unused by "
            f"{short(clear.api_full_name)} {times} in a row"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return gradient_plan("zero_grad", "step")

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _parts(params: tuple[Param, ...]) -> tuple[APIParam, int]:
    """Return the API and the number of a hypothesis.

    Raises:
        InvariantError: it is none of this relation.
    """
    name = GradientsUsedRelation.name
    if len(params) == 2:
        return pair(name, params, APIParam, VarTypeParam)[0], A_LOT
    clear, _, number = three(name, params, APIParam, VarTypeParam, ConstantParam)
    if type(number.value) is not int or number.value < 0:
        raise InvariantError(f"{name} needs a number of calls, got {number.value!r}")
    return clear, number.value


class _Steps:
    """Knows when which optimizers stepped last, and on what."""

    def __init__(self) -> None:
        self._last_skipped = NONE
        self._last: dict[int, int] = {}
        # Of each, by code of the variable, whether it holds it.
        self._held: dict[int, Bool] = {}

    def observe(self, window: Window) -> None:
        """Look at the next window; what the methods tell is about that one then."""
        calls = window.calls
        rows = completed(window, window.rows_of_role("step"))
        self._rows, self._ends, self._objects = rows, calls.end[rows], calls.object[rows]
        self._skips = calls.end[skipped_steps(window, rows)]
        self._before = self._last_skipped, dict(self._last)
        self._last.update(zip(self._objects.tolist(), self._ends.tolist(), strict=True))
        if len(self._skips):
            self._last_skipped = int(self._skips[-1])

    @property
    def objects(self) -> set[int]:
        """The optimizers that stepped so far."""
        return set(self._last)

    def look(self, window: Window) -> None:
        """See what the optimizers hold that step in the window."""
        shown = frames_at(window, self._rows, PARAMETER, ("optimizer",), is_begin=True)
        for indexes, moments in by_stack(window, shown):
            held = moments.select(HELD)
            if held is not None:
                for target in set(self._objects[indexes].tolist()):
                    own = held[self._objects[indexes] == target].any(axis=0)
                    self._hold(target, moments.variables[own], len(window.catalog.variables))

    def _hold(self, optimizer: int, codes: Int32, size: int) -> None:
        known = self._held.get(optimizer, np.zeros(0, np.bool_))
        if len(known) < size:
            known = np.append(known, np.zeros(size - len(known), np.bool_))
        known[codes] = True
        self._held[optimizer] = known

    def made(self, optimizer: int, codes: Int32, since: Int64, until: Int64) -> tuple[Bool, Bool]:
        """Return whether there were steps of an optimizer, and of others, in some spans of time.

        Args:
            optimizer: code of the object.
            codes: of the parameters that it holds.
            since: ends of calls at which the spans begin.
            until: at which they end, in the window.
        """
        kin = {optimizer}
        kin.update(k for k, held in self._held.items() if held[codes[codes < len(held)]].any())
        last_skipped, last = self._before
        is_own = np.isin(self._objects, list(kin))
        own = np.sort(np.concatenate([self._ends[is_own], self._skips]))
        last_own = max(last_skipped, *(last.get(target, NONE) for target in kin))
        last_other = max((end for key, end in last.items() if key not in kin), default=NONE)
        return (
            _latest(own, last_own, until) > since,
            _latest(self._ends[~is_own], last_other, until) > since,
        )

    def are_around(self, window: Window, optimizer: int, rows: Int64) -> Bool:
        """Return which calls are within a step of an optimizer."""
        own = self._rows[self._objects == optimizer]
        if not len(own):
            return np.zeros(len(rows), np.bool_)
        calls = window.calls
        following = own[np.minimum(np.searchsorted(own, rows), len(own) - 1)]
        is_same = window.position_of(following) == window.position_of(rows)
        around: Bool = is_same & (following > rows) & (calls.begin[following] < calls.begin[rows])
        return around


def _latest(ends: Int64, first: int, until: Int64) -> Int64:
    """Return the greatest of *first* and *ends* before each of *until*."""
    latest: Int64 = np.concatenate([[first], ends])[np.searchsorted(ends, until)]
    return latest


class _Clears:
    """Follows the calls of A, and how often in a row they clear unused gradients."""

    def __init__(self, clear: APIParam) -> None:
        self._clear = clear.api_full_name
        self._restart()

    def _restart(self) -> None:
        self._steps = _Steps()
        # By what it was called on: when A was called last.
        self._last: dict[int, int] = {}
        # By optimizer.
        self._in_a_row: dict[int, int] = {}
        self._used: set[int] = set()

    def observe(self, window: Window) -> _Judged | None:
        """Return what the calls of a window clear; None where that proves nothing."""
        if not window.observed:
            self._restart()
            return None
        self._steps.observe(window)
        rows = completed(window, window.rows_of_name(self._clear))
        since = self._since(window, rows)
        # Nearly always there is but one optimizer, which proves nothing.
        if len(self._steps.objects | self._last.keys()) < 2:
            return None
        self._steps.look(window)
        if not len(rows):
            return None
        found = [
            self._of_one(window, optimizer, cleared, since[np.searchsorted(rows, cleared.rows)])
            for optimizer, cleared in _cleared(window, rows).items()
        ]
        if not found:
            return None
        rows, targets, in_a_row, is_first = map(np.concatenate, zip(*found, strict=True))
        order = np.argsort(rows, kind="stable")
        return _Judged(rows[order], targets[order], in_a_row[order], is_first[order])

    def _since(self, window: Window, rows: Int64) -> Int64:
        """Return the end of the call before each on the same object, `NONE` for the first."""
        ends, objects = window.calls.end[rows], window.calls.object[rows]
        last = previous(objects)
        since = np.where(last == NONE, NONE, ends[last])
        for index in np.flatnonzero(last == NONE).tolist():
            since[index] = self._last.get(int(objects[index]), NONE)
        self._last.update(zip(objects.tolist(), ends.tolist(), strict=True))
        return since

    def _of_one(
        self, window: Window, optimizer: int, cleared: _Cleared, since: Int64
    ) -> tuple[Int64, Int32, Int64, Bool]:
        """Return of the calls that clear gradients of an optimizer those to judge."""
        rows = cleared.rows
        ends = window.calls.end[rows]
        own, others = self._steps.made(optimizer, cleared.codes, since, ends)
        counts = cleared.is_effective & (since != NONE) & (own | others)
        counts &= ~self._steps.are_around(window, optimizer, rows)
        rows, used, others = rows[counts], own[counts], others[counts]
        numbers = np.arange(1, len(rows) + 1)
        # The last one that was used; before the first, those of earlier windows count.
        last_used = np.maximum.accumulate(np.where(used, numbers, 0))
        before = self._in_a_row.get(optimizer, 0)
        in_a_row = numbers - last_used + np.where(last_used == 0, before, 0)
        is_first = (last_used == 0) & (optimizer not in self._used)
        if len(rows):
            self._in_a_row[optimizer] = int(in_a_row[-1])
        if used.any():
            self._used.add(optimizer)
        # Where no other one steps, it proves nothing that this one does.
        rows, in_a_row, is_first = rows[others], in_a_row[others], is_first[others]
        return rows, np.full(len(rows), optimizer, np.int32), in_a_row, is_first


@dataclass(frozen=True, slots=True)
class _Judged:
    """Calls that clear gradients of optimizers while others step, in order.

    Attributes:
        rows: of the calls.
        targets: codes of the optimizers.
        in_a_row: how many unused ones in a row there are with each; 0 where they were used.
        is_first: whether none was used so far.
    """

    rows: Int64
    targets: Int32
    in_a_row: Int64
    is_first: Bool


class _Monitor(Monitor):
    def __init__(self, clear: APIParam, number: int) -> None:
        self._number = number
        self._clears = _Clears(clear)

    def observe(self, window: Window) -> Examples:
        found = self._clears.observe(window)
        if found is None:
            return NO_EXAMPLES
        # Too few in a row say nothing, neither for the rule nor against it.
        most = np.where(found.is_first, self._number, max(self._number, 1))
        kept = (found.in_a_row == 0) | (found.in_a_row > most)
        rows, targets, in_a_row = found.rows[kept], found.targets[kept], found.in_a_row[kept]
        return Examples.of_calls(
            window,
            rows,
            in_a_row == 0,
            lambda index: self._explain(window, int(targets[index]), int(in_a_row[index])),
        )

    def _explain(self, window: Window, optimizer: int, in_a_row: int) -> Explanation:
        name = window.catalog.objects[optimizer]
        did = (
            f"{in_a_row} times in a row and it did not step"
            if in_a_row > 1
            else "before it had stepped at all"
        )
        return Explanation(
            message=f"gradients of {short(name)} were cleared {did}, while another optimizer did",
            cause=Cause(
                fact="an optimizer never steps",
                subjects=(name,),
                text=f"{short(name)} is not stepped: its parameters are not updated",
            ),
        )


@dataclass(frozen=True, slots=True)
class _Cleared:
    """What calls clear of one optimizer.

    Attributes:
        rows: of the calls, in order.
        is_effective: whether each finds a gradient.
        codes: the parameters whose gradients they clear.
    """

    rows: Int64
    is_effective: Bool
    codes: Int32


def _cleared(window: Window, rows: Int64) -> dict[int, _Cleared]:
    """Return by optimizer what some calls clear."""
    shown = frames_at(window, rows, PARAMETER, ("grad", "optimizer"), is_begin=True)
    found: dict[int, list[_Cleared]] = {}
    for indexes, moments in by_stack(window, shown):
        optimizers = moments.column("optimizer")
        masks = [mask for where in SELECTED if (mask := moments.select(where)) is not None]
        subject = np.logical_or.reduce(masks) & (optimizers != NONE)
        has = subject & moments.matches("grad", "non_zero")
        for optimizer in np.unique(optimizers[subject]).tolist():
            own = optimizers == optimizer
            held = subject & own
            some = held.any(axis=1)
            one = _Cleared(
                rows[indexes[some]],
                (has & own).any(axis=1)[some],
                moments.variables[held.any(axis=0)],
            )
            found.setdefault(optimizer, []).append(one)
    return {optimizer: _joined(parts) for optimizer, parts in found.items()}


def _joined(parts: list[_Cleared]) -> _Cleared:
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows)
    return _Cleared(
        rows[order],
        np.concatenate([part.is_effective for part in parts])[order],
        np.unique(np.concatenate([part.codes for part in parts])),
    )


class _Proposer(Proposer):
    """Proposes what the reference had at most, and what is a lot in any."""

    def __init__(self) -> None:
        self._clears: dict[APIParam, _Clears] = {}
        self._most: dict[APIParam, int] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role == "zero_grad":
                param = APIParam(api_full_name=api.general, role=api.role)
                self._clears.setdefault(param, _Clears(param))
        for param, clears in self._clears.items():
            found = clears.observe(window)
            if found is not None and len(found.rows):
                most = int(found.in_a_row.max())
                self._most[param] = max(self._most.get(param, 0), most)

    def hypotheses(self) -> Iterable[Hypothesis]:
        name = GradientsUsedRelation.name
        for param, most in self._most.items():
            yield Hypothesis(relation=name, params=(param, CLEARED, ConstantParam(value=most)))
            if most < A_LOT:
                yield Hypothesis(relation=name, params=(param, CLEARED))
