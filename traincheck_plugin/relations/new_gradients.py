"""NewGradientsRelation: no step uses the gradients of the previous one again."""

from __future__ import annotations

from dataclasses import dataclass

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
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import completed, previous, rows_of_role
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.role_proposer import RoleProposer
from traincheck_plugin.vocabulary import NONE, Array, Int32

PARAMETER = VAR_TYPES["parameter"]

GRADIENTS = VarTypeParam(
    var_type=PARAMETER,
    attr_name="grad_norm",
    post_value="changed",
    where=(("held", True),),
)

_SHOWN = ("grad", "grad_norm", "optimizer")
_WITH_GRADIENT = (("held", True), ("grad", "non_zero"))


class NewGradientsRelation(Relation):
    """Between two steps of an optimizer there is a backward, or the gradients are others.

    ``forall consecutive steps s, t of one optimizer: exists backward between s and t, or
    exists v it holds: |grad(v, begin(s))| != |grad(v, begin(t))|``. Gradients that are set by
    hand, or computed by functions, are others. Steps without any gradient are no examples, nor is
    the first failure of an optimizer where a model ran since the last step: where weights are
    averaged, Lightning ends with a pass over the data without backward, and steps once.

    Catches an `optimizer.step()` beside that of the gradient scaler. Cannot see a backward that
    adds to old gradients.
    """

    name = "NewGradientsRelation"
    takes_stretches = True

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
    """What a step met: the parameters that its optimizer holds, and the norms of gradients.

    Attributes:
        num_backwards, num_forwards: how many there were before it.
    """

    num_backwards: int
    num_forwards: int
    codes: Int32
    norms: Array

    def is_same(self, other: _Step) -> bool:
        return np.array_equal(self.codes, other.codes) and np.array_equal(self.norms, other.norms)


class _Monitor(Monitor):
    def __init__(self, step: APIParam) -> None:
        self._step = step.api_full_name
        self._num_backwards = self._num_forwards = 0
        self._last: dict[int, _Step] = {}
        self._has_failed: set[int] = set()

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._last.clear()
            return NO_EXAMPLES
        calls = window.calls
        backwards = calls.end[rows_of_role(window, "backward")]
        rows = completed(window, window.rows_of_name(self._step))
        numbers = self._num_backwards + np.searchsorted(backwards, calls.end[rows])
        self._num_backwards += len(backwards)
        forwards = calls.end[window.rows_of_role("forward")]
        num_forwards = self._num_forwards + np.searchsorted(forwards, calls.end[rows])
        self._num_forwards += len(forwards)
        if not len(rows):
            return NO_EXAMPLES
        shown = frames_at(window, rows, PARAMETER, _SHOWN, is_begin=True)
        is_met = np.zeros(len(rows), np.bool_)
        for indexes, moments in by_stack(window, shown):
            is_met[indexes] = moments.has_some(_WITH_GRADIENT)

        def met(index: int) -> _Step:
            frame = window.frames[int(shown[index])]
            held = frame.columns["optimizer"] == calls.object[rows[index]]
            norms = frame.columns["grad_norm"][held]
            return _Step(
                int(numbers[index]), int(num_forwards[index]), frame.variables[held], norms
            )

        objects = calls.object[rows]
        last = previous(objects)
        is_judged = is_met & is_met[last] & (last != NONE)
        holds = numbers > numbers[last]
        ran = num_forwards > num_forwards[last]
        for index in np.flatnonzero(is_judged & ~holds).tolist():
            holds[index] = not met(index).is_same(met(int(last[index])))
        for index in np.flatnonzero(is_met & (last == NONE)).tolist():
            before = self._last.get(int(objects[index]))
            if before is not None:
                is_judged[index] = True
                is_more = bool(numbers[index] > before.num_backwards)
                holds[index] = is_more or not met(index).is_same(before)
                ran[index] = num_forwards[index] > before.num_forwards
        for target, index in dict(zip(objects.tolist(), range(len(rows)), strict=True)).items():
            self._last.pop(target, None)
            if is_met[index]:
                self._last[target] = met(index)
        for index in np.flatnonzero(is_judged & ~holds & ran).tolist():
            is_judged[index] = int(objects[index]) in self._has_failed
            self._has_failed.add(int(objects[index]))
        rows, holds = rows[is_judged], holds[is_judged]
        if not len(rows):
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

        return Examples.of_calls(window, rows, holds, explain)
