"""GradientFlowRelation: gradients reach the parts of the model that they reach in a healthy run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    ConstantParam,
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
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import Backwards, completed
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.named import Named
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE, Bool, GradState, Int32, Int64, Variable

PARAMETER = VAR_TYPES["parameter"]
HELD = (("held", True),)
FLOWING = VarTypeParam(var_type=PARAMETER, attr_name="grad", pre_value="non_zero", where=HELD)
STEP = "torch.optim.Optimizer.step"

IN_A_ROW = 5
"""Steps of an optimizer with nothing but zeros for a parameter until that is no coincidence."""

NEVER = 10
"""First steps of an optimizer with nothing but zeros until that is no coincidence: what an agent
does may earn nothing at first."""

MOST = 1
"""How many there may be in a row in the reference: where it happens at times, nothing is said."""

MIN_STEPS = 10
"""Steps with gradients of a parameter that show that it gets them."""

MIN_ELEMENTS = 8
"""A clamp may hold a single number for good, as it does a temperature, and an optimizer may have
nothing but a dummy."""

_SHOWN = ("grad", "optimizer")

_ANY = np.logical_or.reduce


class GradientFlowRelation(Relation):
    """Where an optimizer has gradients, those of the named parameters are not all zeros.

    Of all pipelines, ``forall steps s of an optimizer o, until one has a gradient that is not all
    zeros: s is not yet the `NEVER`-th``. Of one, ``forall steps s of an optimizer o, forall
    parameters p in names that o holds: not (in the last `IN_A_ROW` steps of o the gradient of p was
    all zeros, and some other gradient of o was not)``. Steps that no backward led to do not count;
    one without a gradient of p, or with nothing but zeros, begins anew. Named are parameters of
    which the reference has a gradient that is not all zeros in all steps, but for single ones.

    Catches a term of the loss with a weight of 0, a branch that is multiplied by 0, a mask that
    leaves nothing over, and a loss that is rounded. Cannot see gradients that are too small, nor a
    part that is cut off, which gets no gradient at all.
    """

    name = "GradientFlowRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        names = _names(params)
        return _Never() if names is None else _Monitor(names)

    def describe(self, params: tuple[Param, ...]) -> str:
        names = _names(params)
        if names is None:
            return (
                f"some gradient that an optimizer uses in its first {NEVER} steps is not all zeros"
            )
        shown = ", ".join(f"`{name}`" for name in names[:3])
        more = ", ..." if len(names) > 3 else ""
        noun = "1 parameter" if len(names) == 1 else f"{len(names)} parameters"
        return f"the gradients of {noun} ({shown}{more}) are not all zeros when the optimizer steps"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        attributes = frozenset({("parameter", "grad"), ("parameter", "optimizer")})
        return Plan(functions=frozenset(), attributes={"step": attributes})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _names(params: tuple[Param, ...]) -> tuple[str, ...] | None:
    """Return the names of a hypothesis; None where it is about all that an optimizer holds.

    Raises:
        InvariantError: it is none of this relation.
    """
    if params == (FLOWING,):
        return None
    name = GradientFlowRelation.name
    _, names = pair(name, params, VarTypeParam, ConstantParam)
    if not isinstance(names.value, tuple) or not all(isinstance(n, str) for n in names.value):
        raise InvariantError(f"{name} needs a list of names, got {names.value!r}")
    return names.value


def _name(variable: Variable) -> str:
    """Return the name under which a parameter is found again in another run."""
    # The module that defines the class of a model may be another one when a script is imported.
    return f"{variable.owner.rpartition('.')[2]}.{variable.name}"


class _Part(NamedTuple):
    """Steps of one optimizer, in order: a row for each, and a column for each variable.

    Attributes:
        rows: of the calls.
        flows: whether the gradient was not all zeros.
        num_dry: in how many steps in a row, with this one, it was.
    """

    rows: Int64
    flows: Bool
    num_dry: Int64


class _Flow:
    """Follows which parameters get gradients from one step of an optimizer to the next."""

    def __init__(self) -> None:
        self._backwards = Backwards()
        # By optimizer and code of the parameter.
        self._num_dry: dict[int, Int64] = {}

    def observe(self, window: Window) -> Iterator[_Part]:
        """Yield the steps of each optimizer of the next window."""
        if not window.observed:
            self._num_dry.clear()
            return
        rows = completed(window, window.rows_of_name(STEP))
        rows = rows[self._backwards.led_to(window, rows)]
        positions = frames_at(window, rows, PARAMETER, _SHOWN, is_begin=True)
        rows, positions = rows[positions != NONE], positions[positions != NONE]
        flows, dry = _table(window, positions)
        objects = window.calls.object[rows]
        for target in np.unique(objects).tolist():
            chosen = np.flatnonzero(objects == target)
            # Where nothing else gets any, the loss is flat.
            is_dry = dry[chosen] & np.any(flows[chosen], axis=1, keepdims=True)
            numbers = np.arange(1, len(chosen) + 1)[:, None]
            last = np.maximum.accumulate(np.where(is_dry, 0, numbers), axis=0)
            before = np.zeros(is_dry.shape[1], np.int64)
            known = self._num_dry.get(target)
            if known is not None:
                before[: len(known)] = known
            num_dry = numbers - last + np.where(last == 0, before, 0)
            self._num_dry[target] = num_dry[-1]
            yield _Part(rows[chosen], flows[chosen], num_dry)


def _table(window: Window, positions: Int64) -> tuple[Bool, Bool]:
    """Return which parameters get gradients, and which nothing but zeros, in each frame."""
    flows, zeros = np.zeros((2, len(positions), len(window.catalog.variables)), np.bool_)
    for indexes, shown in by_stack(window, positions):
        held = shown.select(HELD)
        if held is not None:
            grad = shown.column("grad")
            flows[indexes[:, None], shown.variables] = held & (grad >= GradState.NON_ZERO)
            zeros[indexes[:, None], shown.variables] = held & (grad == GradState.ZERO)
    return flows, zeros


class _Never(Monitor):
    """Judges an optimizer until it gets a gradient that is not all zeros."""

    def __init__(self) -> None:
        self._run = PerRun(_Beginnings)

    def observe(self, window: Window) -> Examples:
        run = self._run.of(window.catalog)
        rows = completed(window, window.rows_of_name(STEP))
        is_led = run.backwards.led_to(window, rows)
        if not window.observed:
            # What the steps that were left out had is not known.
            run.have_begun |= run.num_flat.keys()
            return NO_EXAMPLES
        objects = window.calls.object[rows]
        new = [target for target in set(objects.tolist()) if target not in run.have_begun]
        if not new:
            return NO_EXAMPLES
        rows = rows[is_led & np.isin(objects, new)]
        positions = frames_at(window, rows, PARAMETER, _SHOWN, is_begin=True)
        rows, positions = rows[positions != NONE], positions[positions != NONE]
        flows, dry = (_ANY(table, axis=1) for table in _table(window, positions))
        judged, numbers = [], []
        for index, target in enumerate(window.calls.object[rows].tolist()):
            if target in run.have_begun:
                continue
            is_flat = (
                dry[index] and _num_zeros(window, rows[index], positions[index]) >= MIN_ELEMENTS
            )
            number = run.num_flat.get(target, 0) + int(is_flat)
            run.num_flat[target] = number
            if flows[index]:
                run.have_begun.add(target)
            judged.append(index)
            numbers.append(0 if flows[index] else number)
        if not judged:
            return NO_EXAMPLES
        rows, positions = rows[judged], positions[judged]

        def explain(index: int) -> Explanation:
            zeros = _zeros(window, int(rows[index]), int(positions[index]))
            when = f"each of the first {numbers[index]} calls"
            return _explain(window, int(rows[index]), zeros, when)

        return Examples.of_calls(window, rows, np.array(numbers) < NEVER, explain)


def _zeros(window: Window, row: int, position: int) -> Int32:
    """Return the parameters of an optimizer whose gradients are all zeros at a step of it."""
    shown = window.frames[position]
    held = shown.columns["optimizer"] == window.calls.object[row]
    codes: Int32 = shown.variables[held & (shown.columns["grad"] == GradState.ZERO)]
    return codes


def _num_zeros(window: Window, row: int, position: int) -> int:
    return int(window.catalog.num_elements(_zeros(window, row, position)).sum())


class _Beginnings:
    """The first steps of the optimizers of a run.

    Attributes:
        backwards: tells what led to a step.
        num_flat: of each optimizer, steps with nothing but zeros.
        have_begun: optimizers that had a gradient that was not all zeros.
    """

    def __init__(self) -> None:
        self.backwards = Backwards()
        self.num_flat: dict[int, int] = {}
        self.have_begun: set[int] = set()


class _Monitor(Monitor):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._named = Named(PARAMETER, names, _name)
        self._flow = PerRun(_Flow)

    def observe(self, window: Window) -> Examples:
        parts = list(self._flow.of(window.catalog).observe(window))
        if not parts:
            return NO_EXAMPLES
        catalog = window.catalog
        named = self._named.among(catalog)[: parts[0].flows.shape[1]]
        rows = np.concatenate([part.rows for part in parts])
        num_dry = named * np.concatenate([part.num_dry for part in parts])
        flows = named & np.concatenate([part.flows for part in parts])
        order = np.argsort(rows)
        order = order[(flows | (num_dry > 0))[order].any(axis=1)]
        if not len(order):
            return NO_EXAMPLES
        rows, fails = rows[order], num_dry[order] >= IN_A_ROW
        return Examples.of_calls(
            window,
            rows,
            ~fails.any(axis=1),
            lambda index: _explain(
                window,
                int(rows[index]),
                np.flatnonzero(fails[index]).astype(np.int32),
                f"the last {IN_A_ROW} calls",
            ),
        )


def _explain(window: Window, row: int, codes: Int32, when: str) -> Explanation:
    part, at = window.at(row)
    name = short(part.catalog.apis[int(part.calls.api[at])].name)
    which = describe_variables([window.catalog.variables[int(code)] for code in codes])
    verb = "gradient of {} was" if len(codes) == 1 else "gradients of {} were"
    return Explanation(
        message=f"the {verb.format(which)} all zeros in {when} of {name}",
        cause=Cause(
            fact="gradients are zero",
            subjects=tuple(sorted(window.catalog.variables[int(c)].label for c in codes)),
            text=f"what {which} {'computes' if len(codes) == 1 else 'compute'} does not count in "
            "the loss: its term has a weight of 0, a mask leaves nothing over, it is rounded, or "
            "an activation is saturated",
        ),
    )


class _Proposer(Proposer):
    """Proposes the parameters that get gradients in each step, but for single ones."""

    def __init__(self) -> None:
        self._flow = PerRun(_Flow)
        self._num_flowing: dict[str, int] = {}
        self._is_left_out: set[str] = set()
        self._has_steps = False

    def observe(self, window: Window) -> None:
        parts = list(self._flow.of(window.catalog).observe(window))
        if not parts:
            return
        self._has_steps = True
        flowing = np.sum([part.flows.sum(axis=0) for part in parts], axis=0)
        most = np.max([part.num_dry.max(axis=0) for part in parts], axis=0)
        codes = np.flatnonzero(flowing + most).astype(np.int32)
        sizes = window.catalog.num_elements(codes).tolist()
        for code, size in zip(codes.tolist(), sizes, strict=True):
            name = _name(window.catalog.variables[code])
            self._num_flowing[name] = self._num_flowing.get(name, 0) + int(flowing[code])
            if most[code] > MOST or size < MIN_ELEMENTS:
                self._is_left_out.add(name)

    def hypotheses(self) -> Iterable[Hypothesis]:
        names = [
            name
            for name, number in self._num_flowing.items()
            if number >= MIN_STEPS and name not in self._is_left_out
        ]
        if self._has_steps:
            yield Hypothesis(relation=GradientFlowRelation.name, params=(FLOWING,))
        if names:
            params = FLOWING, ConstantParam(value=tuple(sorted(names)))
            yield Hypothesis(relation=GradientFlowRelation.name, params=params)
