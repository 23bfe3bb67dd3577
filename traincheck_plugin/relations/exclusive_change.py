"""ExclusiveChangeRelation: who changes a variable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
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
from traincheck_plugin.relations.causes import left_behind
from traincheck_plugin.relations.lifecycle import completed, last_of_each
from traincheck_plugin.relations.moments import Pair, changes, fold, pairs
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import pair, variable_plan
from traincheck_plugin.relations.role_proposer import RoleProposer
from traincheck_plugin.vocabulary import NONE, Bool, GradState, Int64, Variable

CHANGED = VarTypeParam(
    var_type=VAR_TYPES["parameter"],
    attr_name="data",
    post_value="changed",
    quantifier="every",
)
LEFT_OUT = replace(CHANGED, where=(("left_out", True),))
"""Speaks of the calls that leave out what gets gradients and is in no optimizer."""

RULES = (CHANGED, LEFT_OUT)


class ExclusiveChangeRelation(Relation):
    """A variable that a call of A changes is changed by calls of A on no other object.

    ``forall windows w, calls a, b of A in w on different objects, with no backward between their
    ends: changed(a) and changed(b) are disjoint``. A call inside another, as that of an optimizer
    that wraps one, is part of it. Optimizers may share parameters and take turns, with a backward
    for each, but not where a parameter that has a gradient at begin(b) is in no optimizer. That is
    the other rule, of windows in which A is called on several objects, and of a and b in a row of
    those that change a variable.

    Catches parameters that were given to two optimizers, both of which step, and those of one model
    that were given in place of those of another. Cannot see one that is in both and that one of
    them never steps.
    """

    name = "ExclusiveChangeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        if variables not in RULES:
            raise InvariantError(
                f"{self.name} speaks of the data of parameters that is changed, of all or where "
                f"others are left_out, got {variables}"
            )
        return (_OfLeftOut if variables == LEFT_OUT else _Monitor)(api)

    def describe(self, params: tuple[Param, ...]) -> str:
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        who = f"no parameter is updated by {short(api.api_full_name)} of two optimizers"
        return who if variables == CHANGED else f"{who} where others get gradients and are in none"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        api, _ = pair(self.name, params, APIParam, VarTypeParam)
        return variable_plan(api, CHANGED)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    """Judges the windows in which A is called."""

    def __init__(self, api: APIParam) -> None:
        self._api = api

    def observe(self, window: Window) -> Examples:
        rows = completed(window, window.rows_of_name(self._api.api_full_name))
        rows = rows[~_is_inside(window, rows)]
        found = list(pairs(window, rows, CHANGED))
        if not found:
            return NO_EXAMPLES
        rows = np.sort(np.concatenate([both.begin.calls for both in found]))
        judged = last_of_each(window, rows)
        positions = window.position_of(judged)
        shared: dict[int, tuple[Window, int, Int64]] = {}
        for index in self._suspects(window, found, positions):
            part = window.part(int(positions[index]))
            own = rows[window.position_of(rows) == positions[index]]
            offset = 0 if window.joint is None else int(window.joint.calls[positions[index]])
            first = self._first_shared(part, own - offset)
            if first is not None:
                judged[index] = first[0] + offset
                shared[index] = part, *first
        holds = np.ones(len(judged), np.bool_)
        holds[list(shared)] = False
        told = self._told(window, rows, positions)
        numbers = np.flatnonzero(told).tolist()
        return Examples.of_calls(
            window, judged[told], holds[told], lambda index: self._explain(*shared[numbers[index]])
        )

    def _told(self, window: Window, rows: Int64, positions: Int64) -> Bool:
        """Return which windows, at some positions and with some calls, are examples."""
        return np.ones(len(positions), np.bool_)

    def _is_one_update(self, before: int, now: int) -> bool:
        """Return whether two calls after so many backwards may not change the same."""
        return before == now

    def _left_out(self, window: Window, both: Pair, shared: Int64) -> list[Variable]:
        """Return what could learn and is in no optimizer when a call begins."""
        frame = window.frames[int(both.begin.positions[0])]
        return left_behind(window, frame, np.isin(frame.variables, shared))[0]

    def _fails(self, window: Window, both: Pair, shared: Int64) -> bool:
        """Return whether a call may not change what one on another object did."""
        return True

    def _how(self, name: str, them: str, left_out: str) -> str:
        """Return what becomes of what is in two optimizers.

        Args:
            name: of the call.
            them: what it changes, as a pronoun.
            left_out: what is in no optimizer; "" for nothing.
        """
        instead = f"; {left_out} require gradients and are in no optimizer" if left_out else ""
        return f", and {name} updates {them} a second time{instead}"

    def _suspects(self, window: Window, found: list[Pair], positions: Int64) -> list[int]:
        """Return which of the windows have a variable that calls on several objects change."""
        objects = window.calls.object
        if len({code for both in found for code in objects[both.begin.calls].tolist()}) == 1:
            return []
        codes = np.unique(np.concatenate([both.begin.variables for both in found]))
        beyond = len(window.catalog.objects)
        first = np.full((len(positions), len(codes)), beyond)
        last = np.full(first.shape, NONE)
        for both in found:
            variables, changed = changes(both)
            rows = np.searchsorted(positions, window.position_of(both.begin.calls))
            columns = np.searchsorted(codes, variables)
            targets = objects[both.begin.calls][:, None]
            fold(np.minimum, first, rows, columns, np.where(changed, targets, beyond))
            fold(np.maximum, last, rows, columns, np.where(changed, targets, NONE))
        return np.flatnonzero((first < last).any(axis=1)).tolist()

    def _first_shared(self, window: Window, rows: Int64) -> tuple[int, Int64] | None:
        """Return the first call of a single window that changes what one on another object did."""
        # By variable: which object's call changed it, and how many backwards had ended by then.
        writer: dict[int, tuple[int, int]] = {}
        backwards = window.calls.end[window.rows_of_role("backward")]
        for both in pairs(window, rows, CHANGED):
            variables, changed = changes(both)
            row = int(both.begin.calls[0])
            target = int(window.calls.object[row])
            codes = variables[changed[0]].tolist()
            number = int(np.searchsorted(backwards, window.calls.end[row]))
            earlier = [writer.get(code, (target, number)) for code in codes]
            shared = np.array(
                [
                    code
                    for code, (other, before) in zip(codes, earlier, strict=True)
                    if other != target and self._is_one_update(before, number)
                ],
                np.int64,
            )
            if len(shared) and self._fails(window, both, shared):
                return row, shared
            writer.update(dict.fromkeys(codes, (target, number)))
        return None

    def _explain(self, window: Window, row: int, codes: Int64) -> Explanation:
        names = [window.catalog.variables[int(code)] for code in codes]
        who = describe_variables(names)
        both = next(pairs(window, np.array([row]), CHANGED))
        behind = self._left_out(window, both, codes)
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        one = len(names) == 1
        left_out = describe_variables(behind) if behind else ""
        how = self._how(name, "it" if one else "them", left_out)
        return Explanation(
            message=f"{who} {'was' if one else 'were'} updated by two optimizers in one step",
            cause=Cause(
                fact="in two optimizers",
                subjects=tuple(sorted(v.label for v in names)),
                text=f"{who} {'is' if one else 'are'} in two optimizers{how}",
                left_out=tuple(sorted(v.label for v in behind)),
            ),
        )


class _OfLeftOut(_Monitor):
    """Judges the windows in which A is called on several objects, by what they leave out."""

    def _told(self, window: Window, rows: Int64, positions: Int64) -> Bool:
        number = np.searchsorted(positions, window.position_of(rows))
        objects = window.calls.object[rows]
        first = np.searchsorted(number, np.arange(len(positions)))
        several = np.zeros(len(positions), np.bool_)
        several[number[objects != objects[first][number]]] = True
        return several

    def _is_one_update(self, before: int, now: int) -> bool:
        return True

    def _left_out(self, window: Window, both: Pair, shared: Int64) -> list[Variable]:
        """Return what has a gradient besides."""
        frame = window.frames[int(both.begin.positions[0])]
        if "grad" not in frame.columns:
            return []
        is_idle = (frame.columns["grad"] < GradState.NON_ZERO) | np.isin(frame.variables, shared)
        return left_behind(window, frame, is_idle)[0]

    def _fails(self, window: Window, both: Pair, shared: Int64) -> bool:
        return bool(self._left_out(window, both, shared))

    def _how(self, name: str, them: str, left_out: str) -> str:
        return (
            f": one of them was built with these in place of {left_out}, which get gradients and "
            "are in no optimizer"
        )


class _Proposer(Proposer):
    """Proposes both rules, that of what is left out where several optimizers step in a window."""

    def __init__(self) -> None:
        self._plain = RoleProposer(ExclusiveChangeRelation.name, frozenset({"step"}), CHANGED)
        self._monitors: dict[APIParam, _OfLeftOut] = {}
        self._shown: set[APIParam] = set()

    def observe(self, window: Window) -> None:
        self._plain.observe(window)
        for hypothesis in self._plain.hypotheses():
            api, _ = pair(hypothesis.relation, hypothesis.params, APIParam, VarTypeParam)
            monitor = self._monitors.setdefault(api, _OfLeftOut(api))
            if api not in self._shown and monitor.observe(window).holds.any():
                self._shown.add(api)

    def hypotheses(self) -> Iterable[Hypothesis]:
        yield from self._plain.hypotheses()
        for api in self._monitors:
            if api in self._shown:
                yield Hypothesis(relation=ExclusiveChangeRelation.name, params=(api, LEFT_OUT))


def _is_inside(window: Window, rows: Int64) -> Bool:
    """Return which of the calls are inside another of their window; ordered by their ends."""
    inside = np.zeros(len(rows), np.bool_)
    if len(rows) > 1:
        # What is of a later window is taken to begin later.
        begins, ends = window.calls.begin[rows], window.calls.end[rows]
        begins = begins + window.position_of(rows) * (int(ends[-1]) + 1)
        # Calls nest, so one is inside another iff one that ends later began before it.
        earliest = np.minimum.accumulate(begins[::-1])[::-1]
        inside[:-1] = (earliest[1:] < begins[:-1]) & (ends[:-1] < ends[1:])
    return inside
