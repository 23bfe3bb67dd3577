"""NewGradientsRelation: no step uses the gradients of the previous one again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import Array, GradState, Int32, Window
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
from traincheck_plugin.relations.lifecycle import completed, rows_of_role
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.role_proposer import RoleProposer

GRADIENTS = VarTypeParam(
    var_type=VAR_TYPES["parameter"],
    attr_name="grad_norm",
    post_value="changed",
    where=(("held", True),),
)


class NewGradientsRelation(Relation):
    """Between two steps of an optimizer there is a backward, or the gradients are others.

    ``forall consecutive steps s, t of one optimizer: exists backward between s and t, or
    exists v it holds: |grad(v, begin(s))| != |grad(v, begin(t))|``. Gradients that are set by
    hand, or computed by functions, are others. Steps without any gradient are no examples.

    Catches an `optimizer.step()` beside that of the gradient scaler. Cannot see a backward that
    adds to old gradients.
    """

    name = "NewGradientsRelation"

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, frozenset({"step"}), GRADIENTS)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return _Monitor(step)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"no {short(step.api_full_name)} uses the gradients of the previous one again"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        attributes = frozenset(
            {("parameter", "grad"), ("parameter", "grad_norm"), ("parameter", "optimizer")}
        )
        return Plan(functions=frozenset(), attributes={"step": attributes})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical"


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step met: the parameters that its optimizer holds, and the norms of gradients."""

    num_backwards: int
    codes: Int32
    norms: Array

    def is_same(self, other: _Step) -> bool:
        return np.array_equal(self.codes, other.codes) and np.array_equal(self.norms, other.norms)


class _Monitor(Monitor):
    def __init__(self, step: APIParam) -> None:
        self._step = step.api_full_name
        self._num_backwards = 0
        self._last: dict[int, _Step] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._last.clear()
            return NO_EXAMPLES
        calls = window.calls
        backwards = calls.end[rows_of_role(window, "backward")]
        rows, holds = [], []
        for row in completed(window, window.rows_of_name(self._step)).tolist():
            number = self._num_backwards + int(np.searchsorted(backwards, calls.end[row]))
            met = self._met(window, row, number)
            target = int(calls.object[row])
            if met is None:
                self._last.pop(target, None)
                continue
            previous = self._last.get(target)
            self._last[target] = met
            if previous is not None:
                rows.append(row)
                holds.append(number > previous.num_backwards or not met.is_same(previous))
        self._num_backwards += len(backwards)
        if not rows:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(calls.api[rows[index]])].name)
            return Explanation(
                message=f"{name} used the gradients of the previous step again",
                cause=Cause(
                    fact="two steps for one backward",
                    subjects=(name,),
                    text="the optimizer stepped twice, with no backward in between",
                ),
            )

        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), explain
        )

    def _met(self, window: Window, row: int, num_backwards: int) -> _Step | None:
        for frame in window.frames_of_call.get(int(window.calls.call[row]), ()):
            columns = frame.columns
            if frame.phase == "begin" and {"grad", "grad_norm", "optimizer"} <= columns.keys():
                held = columns["optimizer"] == window.calls.object[row]
                if not (columns["grad"][held] >= GradState.NON_ZERO).any():
                    return None
                return _Step(num_backwards, frame.variables[held], columns["grad_norm"][held])
        return None
