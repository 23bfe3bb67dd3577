"""ExclusiveChangeRelation: who changes a variable."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NONE, Frame, Int64, Phase, Window
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
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import pair, variable_plan
from traincheck_plugin.relations.role_proposer import RoleProposer
from traincheck_plugin.relations.values import align, is_about

CHANGED = VarTypeParam(
    var_type=VAR_TYPES["parameter"],
    attr_name="data",
    post_value="changed",
    quantifier="every",
)


class ExclusiveChangeRelation(Relation):
    """A variable that a call of A changes is changed by calls of A on no other object.

    ``forall windows w, calls a, b of A in w on different objects: changed(a) and changed(b) are
    disjoint``. A call inside another, as that of an optimizer that wraps one, is part of it.

    Catches parameters that were given to two optimizers, both of which step. Cannot see one that
    is in both and that one of them never steps.
    """

    name = "ExclusiveChangeRelation"

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
        calls = window.calls
        rows = window.rows_of_name(self._api.api_full_name)
        rows = rows[calls.exception[rows] == NONE]
        rows = rows[~_is_inside(window, rows)]
        writer = np.full(len(window.catalog.variables), NONE, np.int64)
        shared: dict[int, Int64] = {}
        judged = NONE
        for row in rows.tolist():
            codes = self._changed(window, row)
            if codes is None:
                continue
            judged = row
            target = int(calls.object[row])
            earlier = writer[codes]
            both = codes[(earlier != NONE) & (earlier != target)]
            if len(both):
                shared[row] = both
            writer[codes] = target
        if judged == NONE:
            return NO_EXAMPLES
        first = next(iter(shared), judged)

        def explain(index: int) -> Explanation:
            return self._explain(window, first, shared[first])

        return Examples.of_calls(
            window, np.array([first], np.int64), np.array([not shared]), explain
        )

    def _changed(self, window: Window, row: int) -> Int64 | None:
        """Return the variables that a call changed; None where its frames do not tell."""
        frames = self._frames(window, row)
        if len(frames) < 2:
            return None
        begin, end = frames["begin"], frames["end"]
        common = align(begin, end)
        first, second = (slice(None), slice(None)) if common is None else common
        changed = begin.columns["data"][first] != end.columns["data"][second]
        codes: Int64 = begin.variables[first][changed].astype(np.int64)
        return codes

    def _frames(self, window: Window, row: int) -> dict[Phase, Frame]:
        return {
            frame.phase: frame
            for frame in window.frames_of_call.get(int(window.calls.call[row]), ())
            if is_about(window, frame, self._variables)
        }

    def _explain(self, window: Window, row: int, codes: Int64) -> Explanation:
        names = [window.catalog.variables[int(code)] for code in codes]
        who = describe_variables(names)
        frame = self._frames(window, row)["begin"]
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


def _is_inside(window: Window, rows: Int64) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which of the calls are inside another of them; rows are ordered by their end."""
    begins, ends = window.calls.begin[rows], window.calls.end[rows]
    # Calls nest, so one is inside another iff one that ends later began before it.
    earliest = np.minimum.accumulate(begins[::-1])[::-1]
    inside = np.zeros(len(rows), np.bool_)
    inside[:-1] = (earliest[1:] < begins[:-1]) & (ends[:-1] < ends[1:])
    return inside
