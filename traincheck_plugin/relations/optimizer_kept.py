"""OptimizerKeptRelation: parameters are not handed from one optimizer to the next at every step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.events import NONE, Frame, Int64, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
    Hypothesis,
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

IN_A_ROW = 3
"""Optimizers that make a single step each until that is no coincidence: folds, stages and tasks
begin with a new one."""

STATE = VarTypeParam(
    var_type=VAR_TYPES["slot"], attr_name="data", post_value="changed", where=(("held", True),)
)


class OptimizerKeptRelation(Relation):
    """An optimizer with state makes more than one step before another one takes its parameters.

    ``forall first steps s of an optimizer o on parameters P: not (the last `IN_A_ROW` steps on P
    were those of as many optimizers, each its only one)``. Steps that contain several backwards
    are no examples: each of them is a whole minimisation.

    Catches an optimizer that is made anew inside the loop, so that its momentum is lost with every
    step. Cannot see one that is made anew with every epoch.
    """

    name = "OptimizerKeptRelation"

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return _Monitor(step)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"{short(step.api_full_name)} keeps the state of the optimizer for the next one"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        wanted = frozenset({("parameter", "optimizer"), ("slot", "data")})
        return Plan(functions=frozenset(), attributes={"step": wanted})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    def __init__(self, step: APIParam) -> None:
        self._step = step.api_full_name
        # By variable code: which optimizer stepped last, and how many single steps led to it.
        self._holder: Int64 = np.full(0, NONE, np.int64)
        self._singles: Int64 = np.zeros(0, np.int64)
        self._once: set[int] = set()
        self._often: set[int] = set()

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._holder[:] = NONE
            self._singles[:] = 0
            return NO_EXAMPLES
        missing = len(window.catalog.variables) - len(self._holder)
        if missing > 0:
            self._holder = np.append(self._holder, np.full(missing, NONE))
            self._singles = np.append(self._singles, np.zeros(missing, np.int64))
        calls = window.calls
        backwards = calls.begin[rows_of_role(window, "backward")]
        rows, holds, numbers = [], [], []
        for row in completed(window, window.rows_of_name(self._step)).tolist():
            inner = (backwards > calls.begin[row]) & (backwards < calls.end[row])
            held = self._held(window, row)
            if held is None or inner.sum() > 1:
                continue
            number = self._follow(held, int(calls.object[row]))
            rows.append(row)
            holds.append(number < IN_A_ROW)
            numbers.append(number)
        if not rows:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(calls.api[rows[index]])].name)
            return Explanation(
                message=f"{name} is the first of its optimizer, as were the {numbers[index]} steps "
                "before it on the same parameters",
                cause=Cause(
                    fact="a new optimizer for every step",
                    subjects=(name,),
                    text="every step is made by a new optimizer: the state of the one before is "
                    "lost",
                ),
            )

        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), explain
        )

    def _follow(self, held: Int64, target: int) -> int:
        """Note a step; return how many optimizers before it made a single one."""
        if target in self._once or target in self._often:
            self._often.add(target)
            self._singles[held] = 0
        else:
            self._once.add(target)
            previous = set(self._holder[held].tolist())
            is_taken_over = NONE not in previous and not previous & self._often
            self._singles[held] = self._singles[held] + 1 if is_taken_over else 0
        self._holder[held] = target
        return int(self._singles[held].max())

    def _held(self, window: Window, row: int) -> Int64 | None:
        """Return what the optimizer that steps holds; None where it keeps no state."""
        frames = window.frames_of_call.get(int(window.calls.call[row]), ())
        if not any(_has_state(window, frame) for frame in frames):
            return None
        for frame in frames:
            if "optimizer" in frame.columns:
                held = frame.columns["optimizer"] == window.calls.object[row]
                return frame.variables[held].astype(np.int64) if held.any() else None
        return None


def _has_state(window: Window, frame: Frame) -> bool:
    return frame.phase == "end" and window.kind(frame) == "slot"


class _Proposer(Proposer):
    """Proposes the rule for each kind of optimizer that keeps state."""

    def __init__(self) -> None:
        self._steps: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        for frame in window.frames:
            row = window.row_of_call.get(frame.call)
            if row is not None and _has_state(window, frame):
                api = window.catalog.apis[int(window.calls.api[row])]
                if api.role == "step":
                    self._steps[APIParam(api_full_name=api.general, role=api.role)] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        for step in self._steps:
            yield Hypothesis(relation=OptimizerKeptRelation.name, params=(step, STATE))
