"""FunctionCoverRelation: what must have happened before a call."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import NONE, Bool, Int64, Window
from traincheck_plugin.invariants.model import APIParam, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.lifecycle import AUTOGRAD_GRAD, completed, rows_of_role
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.order import Gaps, PairProposer
from traincheck_plugin.relations.params import api_plan, pair

TELLING = frozenset(
    {("backward", "clip"), ("scaler", "clip"), ("clip", "step"), ("forward", "backward")}
)
"""Roles of what must come first, and of what it must come before, where no state tells as much:
that gradients are clipped too early or too late, or those of one forward are added up twice."""


class FunctionCoverRelation(Relation):
    """Every call of B was preceded by a call of A since the previous B and the previous step.

    ``forall consecutive b1, b2 of B: exists a of A: max(end(b1), end(s)) < end(a) < end(b2)``, with
    s the last optimizer step before b2, unless A or B is the step itself. Where A clips gradients
    and B steps, only the last backward counts as s: what is clipped before it, or after the step,
    is not what the step uses. Where B clips gradients, those of one backward may be clipped in
    several parts: only s counts. No example is then what follows s with no forward and no zero_grad
    in between, as where a norm is measured for a log, and a window without a backward: a trainer
    that only feeds a model with data clips gradients that are not there.

    Catches a `zero_grad` that was dropped from the loop, gradients that are clipped before they are
    unscaled or after the step, and a loss that goes backward twice. Cannot see that the call had no
    effect.
    """

    name = "FunctionCoverRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return PairProposer(self.name)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*pair(self.name, params, APIParam, APIParam))

    def describe(self, params: tuple[Param, ...]) -> str:
        before, call = pair(self.name, params, APIParam, APIParam)
        return f"{short(before.api_full_name)} is called before each {short(call.api_full_name)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*pair(self.name, params, APIParam, APIParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        # An order is a means; whether the state came out right is judged by other relations.
        before, call = pair(self.name, params, APIParam, APIParam)
        is_telling = (before.role, call.role) in TELLING and call.api_full_name != AUTOGRAD_GRAD
        return "warning" if is_telling else "info"


class _Monitor(Monitor):
    def __init__(self, before: APIParam, call: APIParam) -> None:
        self._before = before
        self._roles = before.role, call.role
        self._clips = _Clips() if call.role == "clip" else None
        # What a step uses is what the last backward left.
        is_of_backward = self._roles == ("clip", "step")
        self._since = "since the last backward" if is_of_backward else "in this step"
        self._gaps = Gaps(
            call.api_full_name,
            before.api_full_name,
            restarts="backward" if is_of_backward else "step",
            is_shared=is_of_backward or self._clips is not None,
        )

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._gaps.forget()
        rows, holds = self._gaps.observe(window)
        if self._clips is not None:
            kept = holds | self._clips.lead_to_a_step(window, rows)
            rows, holds = rows[kept], holds[kept]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = window.catalog.apis[int(part.calls.api[row])].name
            return Explanation(
                message=f"{short(name)} was called and no "
                f"{short(self._before.api_full_name)} had come before it {self._since}",
                cause=self._cause(),
            )

        return Examples.of_calls(window, rows, holds, explain)

    def _cause(self) -> Cause | None:
        name = short(self._before.api_full_name)
        if self._roles == ("clip", "step"):
            return Cause(
                fact="gradients are not clipped",
                subjects=(name,),
                text=f"{name} is called after the step, before the backward, or not at all: the "
                "step uses the gradients as they are",
            )
        if self._roles == ("forward", "backward"):
            return Cause(
                fact="several backwards for one forward",
                subjects=("backward",),
                text="backward goes again through what one forward computed: its gradients are "
                "added up more than once",
            )
        return None


class _Clips:
    """Tells the clipping of gradients for a step from that of what a step has left."""

    def __init__(self) -> None:
        self._last_step = self._last_begun = NONE

    def lead_to_a_step(self, window: Window, rows: Int64) -> Bool:
        """Return which clips come after something of a next step, in a window with a backward."""
        ends = window.calls.end
        steps = np.append(self._last_step, ends[completed(window, window.rows_of_role("step"))])
        begun = np.append(self._last_begun, ends[rows_of_role(window, "zero_grad", "forward")])
        self._last_step, self._last_begun = int(steps[-1]), int(begun[-1])
        if not len(rows):
            return np.empty(0, np.bool_)
        latest_step = steps[np.searchsorted(steps, ends[rows]) - 1]
        latest_begun = begun[np.searchsorted(begun, ends[rows]) - 1]
        adding = np.setdiff1d(
            window.rows_of_role("backward"), window.rows_of_name(AUTOGRAD_GRAD), assume_unique=True
        )
        trained = window.position_of(adding)
        leads: Bool = (latest_begun > latest_step) & np.isin(window.position_of(rows), trained)
        return leads
