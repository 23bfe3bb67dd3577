"""FunctionCoverRelation: what must have happened before a call."""

from __future__ import annotations

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Param, Scope, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import Examples, Explanation, Monitor, Proposer, Relation
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.order import Gaps, PairProposer
from traincheck_plugin.relations.params import api_plan, pair


class FunctionCoverRelation(Relation):
    """Every call of B was preceded by a call of A since the previous B.

    ``forall consecutive b1, b2 of B: exists a of A: end(b1) < end(a) < end(b2)``.

    Catches a `zero_grad` that was dropped from the loop. Cannot see that the call had no effect.
    """

    name = "FunctionCoverRelation"

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
        return "info"

    def scope(self, params: tuple[Param, ...]) -> Scope:
        return "pipeline"


class _Monitor(Monitor):
    def __init__(self, before: APIParam, call: APIParam) -> None:
        self._before = before
        self._gaps = Gaps(fence=call.api_full_name, wanted=before.api_full_name)

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._gaps.forget()
        rows, holds = self._gaps.observe(window)

        def explain(index: int) -> Explanation:
            name = window.catalog.apis[int(window.calls.api[rows[index]])].name
            return Explanation(
                message=f"{short(name)} was called again without a call of "
                f"{short(self._before.api_full_name)} in between"
            )

        return Examples.of_calls(window, rows, holds, explain)
