"""ExclusiveChangeRelation: who changes a variable."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
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
from traincheck_plugin.vocabulary import NONE, Bool, Int64

CHANGED = VarTypeParam(
    var_type=VAR_TYPES["parameter"],
    attr_name="data",
    post_value="changed",
    quantifier="every",
)


class ExclusiveChangeRelation(Relation):
    """A variable that a call of A changes is changed by calls of A on no other object.

    ``forall windows w, calls a, b of A in w on different objects, with no backward between their
    ends: changed(a) and changed(b) are disjoint``. A call inside another, as that of an optimizer
    that wraps one, is part of it. Optimizers may share parameters and take turns.

    Catches parameters that were given to two optimizers, both of which step. Cannot see one that
    is in both and that one of them never steps.
    """

    name = "ExclusiveChangeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, frozenset({"step"}), CHANGED)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        if variables != CHANGED:
            raise InvariantError(
                f"{self.name} speaks of the data of parameters that is changed, got "
                f"{variables.attr_name} of {variables.var_type}"
            )
        return _Monitor(api, variables)

    def describe(self, params: tuple[Param, ...]) -> str:
        api, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"no parameter is updated by {short(api.api_full_name)} of two optimizers"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return variable_plan(*pair(self.name, params, APIParam, VarTypeParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    def __init__(self, api: APIParam, variables: VarTypeParam) -> None:
        self._api = api
        self._variables = variables

    def observe(self, window: Window) -> Examples:
        rows = completed(window, window.rows_of_name(self._api.api_full_name))
        rows = rows[~_is_inside(window, rows)]
        found = list(pairs(window, rows, self._variables))
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
        return Examples.of_calls(window, judged, holds, lambda index: self._explain(*shared[index]))

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
        for both in pairs(window, rows, self._variables):
            variables, changed = changes(both)
            row = int(both.begin.calls[0])
            target = int(window.calls.object[row])
            codes = variables[changed[0]].tolist()
            number = int(np.searchsorted(backwards, window.calls.end[row]))
            earlier = [writer.get(code, (target, number)) for code in codes]
            shared = [
                code
                for code, (other, before) in zip(codes, earlier, strict=True)
                if other != target and before == number
            ]
            if shared:
                return row, np.array(shared, np.int64)
            writer.update(dict.fromkeys(codes, (target, number)))
        return None

    def _explain(self, window: Window, row: int, codes: Int64) -> Explanation:
        names = [window.catalog.variables[int(code)] for code in codes]
        who = describe_variables(names)
        begin = next(pairs(window, np.array([row]), self._variables)).begin
        frame = window.frames[int(begin.positions[0])]
        behind, _ = left_behind(window, frame, np.isin(frame.variables, codes))
        instead = f"; {describe_variables(behind)} require gradients and are in no optimizer"
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        one = len(names) == 1
        return Explanation(
            message=f"{who} {'was' if one else 'were'} updated by two optimizers in one step",
            cause=Cause(
                fact="in two optimizers",
                subjects=tuple(sorted(v.label for v in names)),
                text=f"{who} {'is' if one else 'are'} in two optimizers, and {name} updates "
                f"{'it' if one else 'them'} a second time{instead if behind else ''}",
                left_out=tuple(sorted(v.label for v in behind)),
            ),
        )


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
