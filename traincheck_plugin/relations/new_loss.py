"""NewLossRelation: no backward goes through the loss of an earlier one again."""

from __future__ import annotations

import numpy as np

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
from traincheck_plugin.relations.frames import is_backward
from traincheck_plugin.relations.lifecycle import completed, tells
from traincheck_plugin.relations.moments import has_gradients
from traincheck_plugin.relations.naming import place, short
from traincheck_plugin.relations.params import gradient_plan, pair
from traincheck_plugin.relations.role_proposer import RoleProposer

GRADIENTS = VarTypeParam(var_type=VAR_TYPES["parameter"], attr_name="grad", pre_value="non_zero")


class NewLossRelation(Relation):
    """A backward that adds to gradients goes through a loss that none went through before.

    ``forall backwards b with a gradient at begin(b): no backward went through the loss of b
    before``, whatever the loss was multiplied by since. Where gradients were cleared since the last
    backward, b is no example: the first one may have been for a measurement.

    Catches a loss that goes backward in the loss function or a hook, and once more in the trainer.
    Cannot see two losses that are computed from the same outputs, nor backwards from a list of
    losses or from given gradients.
    """

    name = "NewLossRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, frozenset({"backward"}), GRADIENTS)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        backward, _ = pair(self.name, params, APIParam, VarTypeParam)
        return _Monitor(backward)

    def describe(self, params: tuple[Param, ...]) -> str:
        backward, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"no {short(backward.api_full_name)} goes through a loss again"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return gradient_plan("backward")

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    def __init__(self, backward: APIParam) -> None:
        self._backward = backward.api_full_name
        self._is_cleared = False

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            # Nobody saw whether they were.
            self._is_cleared = True
            return NO_EXAMPLES
        rows = completed(window, window.rows_of_name(self._backward))
        rows = rows[is_backward(window)[rows]]
        clears = window.rows_of_role("zero_grad")
        holds = ~tells(window, rows, "again")
        was_cleared = self._is_cleared
        if len(rows):
            self._is_cleared = bool(len(clears) and clears[-1] > rows[-1])
        else:
            self._is_cleared |= len(clears) > 0
        if not holds.all():
            numbers = np.searchsorted(clears, rows)
            is_cleared = np.diff(numbers, prepend=0) > 0
            is_cleared[0] |= was_cleared
            kept = holds | (has_gradients(window, rows) & ~is_cleared)
            rows, holds = rows[kept], holds[kept]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = short(part.catalog.apis[int(part.calls.api[row])].name)
            before = part.rows_of_role("backward")
            before = before[before < row]
            earlier = place(part, int(before[-1])) if len(before) else ""
            return Explanation(
                message=f"{name} went through a loss that an earlier backward{earlier} went "
                "through",
                cause=Cause(
                    fact="several backwards for one loss",
                    subjects=(name,),
                    text="one loss goes backward twice: its gradients are added up more than once",
                ),
            )

        return Examples.of_calls(window, rows, holds, explain)
