"""UnmixedGradientsRelation: no step uses gradients of a loss that another optimizer stepped for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
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
from traincheck_plugin.relations.frames import frames_at, is_backward, times_of
from traincheck_plugin.relations.frames import place as place_of
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.naming import class_name, describe_variables, short
from traincheck_plugin.relations.params import gradient_plan
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE, Array, Bool, GradState, Int32, Role

PARAMETER = VAR_TYPES["parameter"]

_NORMS = Plan(
    functions=frozenset(), attributes={"backward": frozenset({("parameter", "grad_norm")})}
)


class UnmixedGradientsRelation(Relation):
    """No step uses gradients both from before the step of another optimizer and from after it.

    ``forall steps s of an optimizer o, after the last of which another one stepped, forall
    parameters v that o holds of models of one class: not exists step t of another optimizer,
    backwards b, c since the last step of o: b < t < c, both added to grad(v), and it was not
    cleared between the two``.

    Catches a generator that learns from the loss of its discriminator, too: what is generated is
    not detached there, and gradients are cleared before that loss and not after it. Cannot see two
    losses of one optimizer. Accumulation over more batches for one of several optimizers does it
    on purpose.
    """

    name = "UnmixedGradientsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_model(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        return (
            f"no step uses gradients of {_model(params)} both from before the step of another "
            "optimizer and from after it"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _model(params)
        return gradient_plan("backward", "zero_grad", "step").union(_NORMS)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _model(params: tuple[Param, ...]) -> str:
    """Return the class of the models that a hypothesis is about.

    Raises:
        InvariantError: it is none of this relation.
    """
    match params:
        case (VarNameParam(var_name=name, var_type=kind),) if kind == PARAMETER:
            return name
    raise InvariantError(
        f"{UnmixedGradientsRelation.name} expects the class of a model as VarNameParam, got "
        f"{params}"
    )


class _Moment(NamedTuple):
    """A frame of gradients.

    Attributes:
        row: of the call.
        role: of it.
        is_begin: whether it is of its begin.
        position: of the frame.
    """

    row: int
    role: Role
    is_begin: bool
    position: int


_FRAMES: tuple[tuple[Role, bool], ...] = (
    ("zero_grad", False),
    ("backward", True),
    ("backward", False),
    ("step", True),
)


def _moments(window: Window) -> Iterator[_Moment]:
    """Yield the frames of gradients of a window, in order of time."""
    found: list[tuple[int, _Moment]] = []
    for role, is_begin in _FRAMES:
        rows = window.rows_of_role(role)
        shown: tuple[str, ...] = ("grad", "optimizer")
        if role == "backward":
            rows = rows[is_backward(window)[rows]]
            shown = ("grad", "grad_norm", "optimizer")
        frames = frames_at(window, rows, PARAMETER, shown, is_begin=is_begin)
        rows, frames = rows[frames != NONE], frames[frames != NONE]
        times = times_of(window, rows, place_of(window, frames)[2])
        found += zip(
            times.tolist(),
            (
                _Moment(row, role, is_begin, frame)
                for row, frame in zip(rows.tolist(), frames.tolist(), strict=True)
            ),
            strict=True,
        )
    found.sort()
    return (moment for _, moment in found)


class _Gradients:
    """What is known of the gradients of each parameter since its optimizer stepped.

    Attributes:
        is_new: whether some backward added to it.
        is_left: whether it was there, by then, when another optimizer stepped.
        is_mixed: whether a backward added to what was left.
    """

    def __init__(self) -> None:
        self.is_new, self.is_left, self.is_mixed = np.zeros((3, 0), np.bool_)

    def reserve(self, codes: Int32) -> None:
        """Have room for these variables."""
        missing = int(codes.max(initial=NONE)) + 1 - len(self.is_new)
        if missing > 0:
            self.is_new, self.is_left, self.is_mixed = (
                np.pad(known, (0, missing)) for known in (self.is_new, self.is_left, self.is_mixed)
            )

    def forget(self, codes: Int32) -> None:
        """Begin anew with some of them."""
        for known in (self.is_new, self.is_left, self.is_mixed):
            known[codes] = False

    def added(self, codes: Int32) -> None:
        """Note that a backward added to some of them."""
        self.is_mixed[codes] |= self.is_left[codes]
        self.is_new[codes] = True

    def leave(self, codes: Int32) -> None:
        """Note that another optimizer steps, and what is there of some of them."""
        self.is_left[codes] |= self.is_new[codes]


class _Run:
    """What is known of one run.

    Attributes:
        gradients: of its parameters.
        is_own: whether each parameter belongs to the models that a rule is about.
        others: the APIs by which other optimizers stepped since each one did.
        stepped: the same of all that ever did.
        norms: of the gradients where the last backward began.
    """

    def __init__(self) -> None:
        self.gradients = _Gradients()
        self.is_own: Bool = np.zeros(0, np.bool_)
        self.others: dict[int, dict[int, str]] = {}
        self.stepped: dict[int, str] = {}
        self.norms: Array | None = None

    def owned(self, catalog: Catalog, codes: Int32, model: str) -> Bool:
        """Return which variables belong to models of a class."""
        missing = range(len(self.is_own), int(codes.max(initial=NONE)) + 1)
        if missing:
            owners = [class_name(catalog.variables[code].owner) for code in missing]
            more = np.array([owner == model for owner in owners])
            self.is_own = np.concatenate([self.is_own, more])
        owned: Bool = self.is_own[codes]
        return owned

    def step(self, optimizer: int, name: str) -> None:
        """Note that an optimizer stepped."""
        self.others[optimizer] = {}
        others = (known for other, known in self.others.items() if other != optimizer)
        for known in (self.stepped, *others):
            known.pop(optimizer, None)
            known[optimizer] = name

    def went(self, codes: Int32, norms: Array, *, is_begin: bool) -> None:
        """Note the gradients where a backward begins or ends."""
        before, self.norms = self.norms, norms if is_begin else None
        if not is_begin and before is not None and len(before) == len(norms):
            self.gradients.added(codes[norms != before])


class _Monitor(Monitor):
    def __init__(self, model: str) -> None:
        self._model = model
        self._runs = PerRun(_Run)

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._runs = PerRun(_Run)
            return NO_EXAMPLES
        run = self._runs.of(window.catalog)
        gradients = run.gradients
        judged: list[tuple[int, Int32, str]] = []
        for moment in _moments(window):
            frame = window.frames[moment.position]
            codes, grad = frame.variables, frame.columns["grad"]
            gradients.reserve(codes)
            gradients.forget(codes[(grad == GradState.NULL) | (grad == GradState.ZERO)])
            if moment.role == "step":
                holders = frame.columns["optimizer"]
                optimizer = int(window.calls.object[moment.row])
                held: Bool = holders == optimizer
                if not held.any():
                    # Another one steps for it.
                    continue
                gradients.leave(codes[~held & (holders != NONE)])
                others = run.others.get(optimizer, run.stepped)
                own = codes[held & run.owned(window.catalog, codes, self._model)]
                if others and len(own):
                    last = list(others.values())[-1]
                    judged.append((moment.row, own[gradients.is_mixed[own]], last))
                gradients.forget(codes[held])
                run.step(optimizer, short(window.catalog.apis[window.calls.api[moment.row]].name))
            elif moment.role == "backward":
                run.went(codes, frame.columns["grad_norm"], is_begin=moment.is_begin)
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([row for row, *_ in judged], np.int64),
            np.array([not len(mixed) for _, mixed, _ in judged], np.bool_),
            lambda index: _explain(window, *judged[index]),
        )


def _explain(window: Window, row: int, mixed: Int32, other: str) -> Explanation:
    name = short(window.catalog.apis[int(window.calls.api[row])].name)
    variables = [window.catalog.variables[code] for code in mixed.tolist()]
    who = describe_variables(variables)
    return Explanation(
        message=(
            f"{name} used gradients of {who} that were left when another optimizer stepped, and "
            "those of a later backward"
        ),
        cause=Cause(
            fact="gradients of two losses are mixed",
            subjects=tuple(variable.name for variable in variables),
            text=f"the loss before {other} of another optimizer gave gradients to {who}, too, and "
            "nothing cleared them before the own loss: it is not detached there, or zero_grad is "
            "called too early",
        ),
    )


class _Proposer(Proposer):
    """Proposes the classes of all models, where there are several optimizers."""

    def __init__(self) -> None:
        self._models: dict[str, None] = {}
        self._optimizers: set[str] = set()

    def observe(self, window: Window) -> None:
        steps = window.rows_of_role("step")
        codes = set(window.calls.object[steps].tolist()) - {NONE}
        self._optimizers.update(window.catalog.objects[code] for code in codes)
        frames = frames_at(window, steps, PARAMETER, ("optimizer",), is_begin=True)
        variables = window.catalog.variables
        for _, shown in by_stack(window, frames):
            for code in shown.variables.tolist():
                self._models[class_name(variables[code].owner)] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        if len(self._optimizers) < 2:
            return
        for model in self._models:
            yield Hypothesis(
                relation=UnmixedGradientsRelation.name,
                params=(VarNameParam(var_name=model, var_type=PARAMETER, attr_name="grad_norm"),),
            )
