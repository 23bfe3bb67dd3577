"""FrozenPartsRelation: what an optimizer of the reference leaves alone is left alone."""

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
from traincheck_plugin.relations.lifecycle import completed
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD, loads_in
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.named import Named
from traincheck_plugin.relations.naming import (
    describe_variables,
    full_name,
    largest_parts,
    part_of,
    short,
)
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE, Bool, Int64

PARAMETER = VAR_TYPES["parameter"]
TRAINED = (("held", True), ("requires_grad", True))
LEFT_ALONE = VarTypeParam(
    var_type=PARAMETER, attr_name="requires_grad", pre_value=False, where=TRAINED
)
STEP = "torch.optim.Optimizer.step"

MIN_STEPS = 8
"""Steps of an optimizer that show what it leaves alone."""

MAX_OPTIMIZERS = 4
"""A run that makes more of them makes one for each of something, of which the next may differ."""

_SHOWN = ("optimizer", "requires_grad")


class FrozenPartsRelation(Relation):
    """An optimizer trains no part of a model that its counterpart in the reference does not train.

    ``forall of the first n steps of the optimizer k, forall parameters p in parts: not (k holds p
    and p requires a gradient)``. Parts are the largest of which the reference trains no parameter
    in its n steps of k: after the end of the reference a part may be unfrozen. Says nothing of an
    optimizer that goes on from a loaded state: another phase may be what it goes on with.

    Catches a backbone that was to be frozen and is not, and an optimizer that holds the parameters
    of another model. Cannot see a part that is frozen and should not be.
    """

    name = "FrozenPartsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_claim(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        claim = _claim(params)
        shown = ", ".join(f"`{part}`" for part in claim.parts[:3])
        more = f" and {len(claim.parts) - 3} other parts" if len(claim.parts) > 3 else ""
        return f"{claim.optimizer} does not train {shown}{more} in its first {claim.length} steps"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        attributes = frozenset({("parameter", "requires_grad"), ("parameter", "optimizer")})
        return Plan(functions=frozenset(), attributes={"step": attributes})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Claim(NamedTuple):
    """What a hypothesis says.

    Attributes:
        optimizer: ``Adam#0``.
        length: for how many of its steps.
        parts: of models: ``Net.backbone``.
    """

    optimizer: str
    length: int
    parts: tuple[str, ...]


def _claim(params: tuple[Param, ...]) -> _Claim:
    """Return what a hypothesis says.

    Raises:
        InvariantError: it is none of this relation.
    """
    name = FrozenPartsRelation.name
    _, constant = pair(name, params, VarTypeParam, ConstantParam)
    match constant.value:
        case (str(optimizer), int(length), *parts) if all(isinstance(p, str) for p in parts):
            return _Claim(optimizer, length, tuple(parts))
    raise InvariantError(
        f"{name} needs an optimizer, a number of steps and names, got {constant.value!r}"
    )


class _Steps(NamedTuple):
    """Steps of one optimizer.

    Attributes:
        optimizer: ``Adam#0``.
        rows: of the calls.
        numbers: how many training steps after its first.
        positions: of the frames at their begin.
    """

    optimizer: str
    rows: Int64
    numbers: Int64
    positions: Int64


class _Optimizers:
    """Follows the optimizers of one run, but for those that go on from a loaded state."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self._loaded: set[int] = set()

    def observe(self, window: Window) -> Iterator[_Steps]:
        """Yield the steps of each optimizer of the next window."""
        calls, catalog = window.calls, window.catalog
        loads = loads_in(window, OPTIMIZER_LOAD)
        self._loaded.update(load.subject for load in loads if load.outcome != "none")
        rows = completed(window, window.rows_of_name(STEP))
        positions = frames_at(window, rows, PARAMETER, _SHOWN, is_begin=True)
        objects = calls.object[rows]
        steps = catalog.contexts.column("step")[calls.context[rows]]
        for target in dict.fromkeys(objects.tolist()):
            chosen = objects == target
            first = self._first.setdefault(target, int(steps[chosen][0]))
            chosen &= positions != NONE
            if target != NONE and target not in self._loaded and chosen.any():
                label = catalog.objects[target].rpartition(".")[2]
                yield _Steps(label, rows[chosen], steps[chosen] - first, positions[chosen])

    def __len__(self) -> int:
        return len(self._first)


class _Monitor(Monitor):
    def __init__(self, claim: _Claim) -> None:
        self._claim = claim
        self._named = Named(PARAMETER, claim.parts, part_of(frozenset(claim.parts)))
        self._optimizers = PerRun(_Optimizers)

    def observe(self, window: Window) -> Examples:
        for steps in self._optimizers.of(window.catalog).observe(window):
            early = steps.numbers < self._claim.length
            if steps.optimizer == self._claim.optimizer and early.any():
                return self._judge(window, steps.rows[early], steps.positions[early])
        return NO_EXAMPLES

    def _judge(self, window: Window, rows: Int64, positions: Int64) -> Examples:
        is_named = self._named.among(window.catalog)
        shown, holds = np.zeros((2, len(rows)), np.bool_)
        for indexes, moments in by_stack(window, positions):
            trained = moments.select(TRAINED)
            named = is_named[moments.variables]
            if trained is not None and named.any():
                shown[indexes] = True
                holds[indexes] = ~(trained & named).any(axis=1)
        rows, positions, holds = rows[shown], positions[shown], holds[shown]

        def explain(index: int) -> Explanation:
            return _explain(window, int(rows[index]), int(positions[index]), is_named)

        return Examples.of_calls(window, rows, holds, explain)


def _explain(window: Window, row: int, position: int, is_named: Bool) -> Explanation:
    [(_, moments)] = by_stack(window, np.array([position]))
    trained = moments.select(TRAINED)
    codes = moments.variables[is_named[moments.variables]]
    if trained is not None:
        codes = moments.variables[trained[0] & is_named[moments.variables]]
    part, at = window.at(row)
    name = short(part.catalog.apis[int(part.calls.api[at])].name)
    variables = [window.catalog.variables[int(code)] for code in codes]
    which = describe_variables(variables)
    has, is_ = ("has", "is") if len(variables) == 1 else ("have", "are")
    return Explanation(
        message=f"{name} trains {which}; in the reference it does not",
        cause=Cause(
            fact="not frozen",
            subjects=tuple(sorted(variable.label for variable in variables)),
            text=f"{which} {has} requires_grad=True and {is_} held by the optimizer: not frozen, "
            "or of another model",
        ),
    )


class _Proposer(Proposer):
    """Proposes for each of the first optimizers the largest parts that it does not train."""

    def __init__(self) -> None:
        self._optimizers = PerRun(_Optimizers)
        self._num_optimizers = 0
        self._length: dict[str, int] = {}
        # By optimizer, the names of the parameters that it meets, and of those it trains.
        self._met: dict[str, set[str]] = {}
        self._trained: dict[str, set[str]] = {}

    def observe(self, window: Window) -> None:
        variables = window.catalog.variables
        optimizers = self._optimizers.of(window.catalog)
        for steps in optimizers.observe(window):
            self._length[steps.optimizer] = int(steps.numbers[-1]) + 1
            met = self._met.setdefault(steps.optimizer, set())
            trained = self._trained.setdefault(steps.optimizer, set())
            for _, moments in by_stack(window, steps.positions):
                mask = moments.select(TRAINED)
                if mask is not None:
                    codes = moments.variables
                    met.update(full_name(variables[code]) for code in codes.tolist())
                    codes = codes[mask.any(axis=0)]
                    trained.update(full_name(variables[code]) for code in codes.tolist())
        self._num_optimizers = max(self._num_optimizers, len(optimizers))

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._num_optimizers > MAX_OPTIMIZERS:
            return
        for optimizer, length in self._length.items():
            if length < MIN_STEPS:
                continue
            trained = self._trained[optimizer]
            parts = largest_parts(self._met[optimizer] - trained, trained)
            if parts:
                value = (optimizer, length, *sorted(parts))
                params = LEFT_ALONE, ConstantParam(value=value)
                yield Hypothesis(relation=FrozenPartsRelation.name, params=params)
