"""APIContainRelation: what a call does."""

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
from traincheck_plugin.relations.api_names import ApiNames
from traincheck_plugin.relations.base import Monitor, Proposer, Relation
from traincheck_plugin.relations.changes import ChangeMonitor, verbs
from traincheck_plugin.relations.contained import ContainedCallMonitor
from traincheck_plugin.relations.cycles import CycleMonitor
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair, variable_plan
from traincheck_plugin.stacks import row_of_frames
from traincheck_plugin.vocabulary import Api, Role

PARAMETER = VAR_TYPES["parameter"]

HELD, OWNED = (("held", True),), (("owned", True),)

CHANGES = (
    VarTypeParam(var_type=PARAMETER, attr_name="data", post_value="changed"),
    VarTypeParam(var_type=PARAMETER, attr_name="grad", pre_value="non_zero", post_value=None),
    VarTypeParam(var_type=PARAMETER, attr_name="grad", pre_value=None, post_value="not_null"),
    VarTypeParam(var_type=VAR_TYPES["slot"], attr_name="data", post_value="changed"),
    VarTypeParam(var_type=VAR_TYPES["group"], attr_name="value", post_value="changed"),
    VarTypeParam(var_type=VAR_TYPES["buffer"], attr_name="data", post_value="changed"),
    VarTypeParam(var_type=VAR_TYPES["module"], attr_name="value", post_value="changed"),
)
"""What a call may do to *some* variables."""

EVERY = {
    CHANGES[0]: replace(CHANGES[0], quantifier="every", where=(("grad", "non_zero"),)),
    CHANGES[1]: replace(CHANGES[1], quantifier="every"),
}
"""What it may then do to *every* one."""

CYCLES = (
    # A copy that a model in another precision is trained with gets its gradients by hand.
    VarTypeParam(
        var_type=PARAMETER,
        attr_name="grad",
        post_value=None,
        quantifier="every",
        where=(*HELD, ("in_model", True)),
    ),
    VarTypeParam(
        var_type=PARAMETER, attr_name="grad", post_value="not_null", quantifier="every", where=HELD
    ),
    VarTypeParam(
        var_type=PARAMETER,
        attr_name="grad",
        post_value="not_null",
        quantifier="every",
        where=(*HELD, ("requires_grad", True)),
    ),
)
"""What every parameter of an optimizer may be at some moment between two of its steps."""

CONTAINERS: frozenset[Role] = frozenset({"forward", "step", "scaler", "framework", "instrumented"})
"""Calls of which it says something about the training what they call."""

TRAINING_STATE: frozenset[Role] = frozenset({"step", "zero_grad", "backward"})


class APIContainRelation(Relation):
    """Each call of A contains a change of variables, or a call of B.

    ``forall calls a of A: exists (or forall) v in V: pre(v at begin(a)) -> post(v at end(a))``,
    or ``exists call b of B inside a``.

    Catches the optimizer of PyTorch forum thread 84911, whose step updates none of the parameters
    it holds. Cannot see an update that is made and is wrong.
    """

    name = "APIContainRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        if len(params) == 2 and isinstance(params[1], APIParam):
            return ContainedCallMonitor(*pair(self.name, params, APIParam, APIParam))
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        if variables.var_type not in VAR_TYPES.values():
            raise InvariantError(
                f"expected a var_type that is one of {', '.join(VAR_TYPES.values())}, "
                f"got {variables.var_type!r}"
            )
        return (CycleMonitor if api.span == "cycle" else ChangeMonitor)(api, variables)

    def describe(self, params: tuple[Param, ...]) -> str:
        if isinstance(params[1], APIParam):
            outer, inner = pair(self.name, params, APIParam, APIParam)
            return f"{short(outer.api_full_name)} calls {short(inner.api_full_name)}"
        api, other = pair(self.name, params, APIParam, VarTypeParam)
        name = short(api.api_full_name)
        if api.span == "cycle":
            if other.post_value is None:
                return f"between two calls of {name} every gradient{_where(other)} is cleared"
            return f"every parameter{_where(other)} has a gradient when {name} runs"
        _, verb, noun = verbs(other)
        count = "every" if other.quantifier == "every" else "at least one"
        return f"{name} {verb} {count} {noun}{_where(other)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        if isinstance(params[1], APIParam):
            return api_plan(*pair(self.name, params, APIParam, APIParam))
        return variable_plan(*pair(self.name, params, APIParam, VarTypeParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        api, other = params
        if not isinstance(api, APIParam) or not isinstance(other, VarTypeParam):
            return "info"
        if api.role in ("mode", "scheduler", "checkpoint"):
            # What a call sets or loads may be there already, and a schedule may pause.
            return "info"
        if api.role not in TRAINING_STATE or other.var_type != PARAMETER:
            return "warning"
        # What concerns every parameter may be meant to spare some of them.
        accumulates = api.span == "cycle" and other.post_value is None
        return "critical" if other.quantifier == "some" or accumulates else "warning"


def _where(param: VarTypeParam) -> str:
    words = {
        ("held", True): "it holds",
        ("owned", True): "it has",
        ("requires_grad", True): "that requires gradients",
        ("grad", "non_zero"): "that has a gradient",
    }
    # That a model has what an optimizer holds goes without saying.
    told = [condition for condition in param.where if condition != ("in_model", True)]
    return "".join(f" {words.get((k, v), f'whose {k} is {v}')}" for k, v in told)


class _Proposer(Proposer):
    """Proposes every effect that at least one call had."""

    def __init__(self) -> None:
        self._names = ApiNames()
        self._found: dict[Hypothesis, None] = {}

    def observe(self, window: Window) -> None:
        apis = window.catalog.apis
        with_frames = np.zeros(len(window.calls), np.bool_)
        rows = row_of_frames(window)
        with_frames[rows[rows >= 0]] = True
        for code in window.api_codes:
            # First all of them: which names are used is a matter of what else there is.
            self._names.of(apis[code])
        for code in window.api_codes:
            api = apis[code]
            names = self._names.of(api)
            if with_frames[window.rows_of_api(code)].any():
                for name in names:
                    self._changes(window, APIParam(api_full_name=name, role=api.role))
            if api.role in CONTAINERS:
                inner = self._inside(window, code)
                for name in names:
                    self._contained(inner, APIParam(api_full_name=name, role=api.role))

    def hypotheses(self) -> Iterable[Hypothesis]:
        return tuple(self._found)

    def _add(self, *params: Param) -> None:
        self._found[Hypothesis(relation=APIContainRelation.name, params=params)] = None

    def _changes(self, window: Window, api: APIParam) -> None:
        for change in CHANGES:
            # Where the object of the call has variables, the rule is about those, and about others
            # elsewhere.
            judged = np.zeros(window.num_parts, np.bool_)
            for where in (HELD, OWNED, ()):
                some = replace(change, where=where)
                hypothesis = Hypothesis(relation=APIContainRelation.name, params=(api, some))
                if hypothesis in self._found:
                    break
                # The monitor itself tells whether the effect was seen.
                examples = ChangeMonitor(api, some).observe(window)
                if not len(examples):
                    continue
                position = np.zeros(1, np.int64) if examples.position is None else examples.position
                seen = np.broadcast_to(position, len(examples))[examples.holds]
                seen = seen[~judged[seen]]
                if len(seen):
                    self._add(api, some)
                    if change in EVERY:
                        every = EVERY[change]
                        self._add(api, replace(every, where=where + every.where))
                    if api.role == "step":
                        for cycle in CYCLES:
                            self._add(replace(api, span="cycle"), cycle)
                    judged[seen[0] :] = True
                judged[position] = True

    def _inside(self, window: Window, code: int) -> list[Api]:
        """Return the APIs of the calls that calls of *code* made in the same window."""
        calls = window.calls
        rows = window.rows_of_api(code)
        rows = rows[np.argsort(calls.call[rows])]
        numbers = calls.call[rows]
        where = np.minimum(np.searchsorted(numbers, calls.parent), len(numbers) - 1)
        inner = np.flatnonzero(numbers[where] == calls.parent)
        inner = inner[window.position_of(rows[where[inner]]) == window.position_of(inner)]
        codes, first = np.unique(calls.api[inner], return_index=True)
        return [window.catalog.apis[int(c)] for c in codes[np.argsort(first)]]

    def _contained(self, inner: Iterable[Api], api: APIParam) -> None:
        for one in inner:
            for name in self._names.of(one):
                self._add(api, APIParam(api_full_name=name, role=one.role))
