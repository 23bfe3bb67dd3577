"""LoadRelation: what is loaded into a module is loaded."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.loads import MODULE_LOAD, OUTCOME, outcome_of
from traincheck_plugin.relations.naming import place

LOADS = APIParam(api_full_name=MODULE_LOAD, argument=OUTCOME, role="checkpoint")


class LoadRelation(Relation):
    """A load finds at least one of the names that the module has.

    ``forall calls a of Module.load_state_dict that raise nothing: names(argument(a)) and
    names(object(a)) are not disjoint``.

    Catches names with a prefix that ``strict=False`` lets pass, so that nothing is loaded. Cannot
    see that another part than the one that was meant is loaded.
    """

    name = "LoadRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        if params != (LOADS,):
            raise InvariantError(f"{self.name} expects the parameter {LOADS}, got {params}")
        return _Monitor()

    def describe(self, params: tuple[Param, ...]) -> str:
        return "Module.load_state_dict loads at least one parameter or buffer"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return Plan.nothing()

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical"

    def regime(self, params: tuple[Param, ...]) -> tuple[str, ...]:
        # Whenever it is: checkpoints are loaded before the training and in the middle of it.
        return ()


class _Monitor(Monitor):
    def observe(self, window: Window) -> Examples:
        rows = window.rows_of_name(MODULE_LOAD)
        outcomes = [outcome_of(window, int(row)) for row in rows]
        known = np.array([outcome != "" for outcome in outcomes], np.bool_)
        if not known.any():
            return NO_EXAMPLES
        rows = rows[known]
        holds = np.array([outcome != "none" for outcome in outcomes], np.bool_)[known]

        def explain(index: int) -> Explanation:
            code = int(window.calls.object[rows[index]])
            target = window.catalog.objects[code] if code >= 0 else "the module"
            call = f"load_state_dict{place(window, int(rows[index]))}"
            return Explanation(
                message=f"load_state_dict loaded nothing into {target}",
                cause=Cause(
                    fact="not loaded",
                    subjects=(target,),
                    text=f"no name in what {call} was given is one of {target}: all were "
                    "unexpected, and all of its own are missing",
                ),
            )

        return Examples.of_calls(window, rows, holds, explain)


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._is_found = False

    def observe(self, window: Window) -> None:
        self._is_found = self._is_found or bool(_Monitor().observe(window).holds.any())

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [Hypothesis(relation=LoadRelation.name, params=(LOADS,))] if self._is_found else []
