"""FunctionLeadRelation: what must happen after a call."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import Examples, Explanation, Monitor, Proposer, Relation
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.order import Gaps, PairProposer
from traincheck_plugin.relations.params import api_plan, pair


class FunctionLeadRelation(Relation):
    """Every call of A is followed by a call of B before the next A.

    ``forall consecutive a1, a2 of A: exists b of B: end(a1) < end(b) < end(a2)``. The example is
    a1, in its context, and is judged when a2 ends; the last call of A is not judged, since a run
    may end anywhere.

    Catches an `eval()` that no `train()` ever follows. Cannot see that B came too late.
    """

    name = "FunctionLeadRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return PairProposer(self.name)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*pair(self.name, params, APIParam, APIParam))

    def describe(self, params: tuple[Param, ...]) -> str:
        call, after = pair(self.name, params, APIParam, APIParam)
        return f"{short(call.api_full_name)} is followed by {short(after.api_full_name)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*pair(self.name, params, APIParam, APIParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "info"

    def implied_by(self, params: tuple[Param, ...]) -> Hypothesis | None:
        # Between two A there is a B: the same gaps, told from their other end.
        return Hypothesis(relation="FunctionCoverRelation", params=params[::-1])


class _Monitor(Monitor):
    def __init__(self, call: APIParam, after: APIParam) -> None:
        self._after = after
        self._gaps = Gaps(fence=call.api_full_name, wanted=after.api_full_name)
        self._name = call.api_full_name
        self._previous: tuple[int, int] | None = None

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._gaps.forget()
        calls = window.calls
        rows, holds = self._gaps.observe(window)
        # A gap ends at its row; the example is the call that began it.
        every = window.rows_of_name(self._name)
        context, source = calls.context[every], calls.source[every]
        if self._previous is not None and len(rows) == len(every):
            context = np.concatenate([[self._previous[0]], context]).astype(np.int32)
            source = np.concatenate([[self._previous[1]], source]).astype(np.int32)
        if len(every):
            self._previous = int(context[-1]), int(source[-1])

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = window.catalog.apis[int(part.calls.api[row])].name
            return Explanation(
                message=f"{short(name)} was called again and no "
                f"{short(self._after.api_full_name)} had followed the first call"
            )

        return Examples(
            holds=holds,
            context=context[: len(rows)],
            source=source[: len(rows)],
            sequence=calls.begin[rows],
            time_ns=calls.end_ns[rows],
            explain=explain,
            position=None if window.joint is None else window.position_of(rows),
        )
