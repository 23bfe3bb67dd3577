"""OptimizerKeptRelation: parameters are not handed from one optimizer to the next at every step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
    Hypothesis,
    Param,
    Severity,
    VarTypeParam,
)
from traincheck_plugin.plan import CHANGE, Plan
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
from traincheck_plugin.vocabulary import NONE, Int64

IN_A_ROW = 3
"""Optimizers that make a single step each until that is no coincidence: folds, stages and tasks
begin with a new one."""

PARAMETER, SLOT = VAR_TYPES["parameter"], VAR_TYPES["slot"]

STATE = VarTypeParam(var_type=SLOT, attr_name="data", post_value="changed", where=(("held", True),))


class OptimizerKeptRelation(Relation):
    """An optimizer with state makes more than one step before another one takes its parameters.

    ``forall first steps s of an optimizer o on parameters P: not (the last `IN_A_ROW` steps on P
    were those of as many optimizers, each its only one)``. Steps that contain several backwards
    are no examples: each of them is a whole minimisation.

    Catches an optimizer that is made anew inside the loop, so that its momentum is lost with every
    step. Cannot see one that is made anew with every epoch.
    """

    name = "OptimizerKeptRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return _Monitor(step)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, _ = pair(self.name, params, APIParam, VarTypeParam)
        return f"{short(step.api_full_name)} keeps the state of the optimizer for the next one"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        # That there is a state is all that is asked.
        wanted = frozenset({("parameter", "optimizer"), ("slot", CHANGE)})
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
        # Further steps of optimizers, in order: what they mean for the parameters is only asked
        # when another optimizer steps first.
        self._further: dict[int, Int64] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._further.clear()
            self._holder[:] = NONE
            self._singles[:] = 0
            return NO_EXAMPLES
        missing = len(window.catalog.variables) - len(self._holder)
        if missing > 0:
            self._holder = np.append(self._holder, np.full(missing, NONE))
            self._singles = np.append(self._singles, np.zeros(missing, np.int64))
        rows, held = _held(window, completed(window, window.rows_of_name(self._step)))
        if not len(rows):
            return NO_EXAMPLES
        targets = window.calls.object[rows].tolist()
        numbers = np.array([self._follow(*one) for one in zip(targets, held, strict=True)])

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(window.calls.api[rows[index]])].name)
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

        return Examples.of_calls(window, rows, numbers < IN_A_ROW, explain)

    def _follow(self, target: int, held: Int64) -> int:
        """Note a step; return how many optimizers before it made a single one."""
        if target in self._once:
            self._often.add(target)
            before = self._further.get(target, held)
            if before is not held and not np.array_equal(before, held):
                self._settle()
            self._further.pop(target, None)
            self._further[target] = held
            return 0
        self._settle()
        self._once.add(target)
        earlier = set(self._holder[held].tolist())
        is_taken_over = NONE not in earlier and not earlier & self._often
        self._singles[held] = self._singles[held] + 1 if is_taken_over else 0
        self._holder[held] = target
        return int(self._singles[held].max())

    def _settle(self) -> None:
        """Note who holds what after further steps."""
        for target, held in self._further.items():
            self._singles[held] = 0
            self._holder[held] = target
        self._further.clear()


def _held(window: Window, rows: Int64) -> tuple[Int64, list[Int64]]:
    """Return which of some steps are of optimizers with state, and what these hold.

    What is the same as at the step before on the optimizer is the same object.
    """
    has_state = frames_at(window, rows, SLOT, (), is_begin=False) != NONE
    rows = rows[has_state & (_num_inner(window, rows) <= 1)]
    if not len(rows):
        return rows, []
    shown = frames_at(window, rows, PARAMETER, ("optimizer",), is_begin=True)
    if (shown == NONE).any():
        end = frames_at(window, rows, PARAMETER, ("optimizer",), is_begin=False)
        shown = np.where(shown == NONE, end, shown)
    found: dict[int, Int64] = {}
    for indexes, moments in by_stack(window, shown):
        held = moments.column("optimizer") == window.calls.object[rows[indexes]][:, None]
        last = previous(window.calls.object[rows[indexes]])
        is_same = (last != NONE) & (held == held[last]).all(axis=1)
        for number, index in enumerate(indexes.tolist()):
            if is_same[number]:
                found[index] = found[int(indexes[last[number]])]
            else:
                found[index] = moments.variables[held[number]].astype(np.int64)
    kept = [index for index in range(len(rows)) if index in found and len(found[index])]
    return rows[kept], [found[index] for index in kept]


def _num_inner(window: Window, rows: Int64) -> Int64:
    """Return how many backwards each of the calls contains; those end before it."""
    calls = window.calls
    backwards = rows_of_role(window, "backward")
    first = np.searchsorted(calls.end[backwards], calls.begin[rows])
    if window.joint is not None:
        own = window.joint.calls[window.position_of(rows)]
        first = np.maximum(first, np.searchsorted(backwards, own))
    return np.searchsorted(backwards, rows) - first


class _Proposer(Proposer):
    """Proposes the rule for each kind of optimizer that keeps state."""

    def __init__(self) -> None:
        self._steps: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        rows = window.rows_of_role("step")
        rows = rows[frames_at(window, rows, SLOT, (), is_begin=False) != NONE]
        for code in np.unique(window.calls.api[rows]).tolist():
            api = window.catalog.apis[code]
            self._steps[APIParam(api_full_name=api.general, role=api.role)] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        for step in self._steps:
            yield Hypothesis(relation=OptimizerKeptRelation.name, params=(step, STATE))
