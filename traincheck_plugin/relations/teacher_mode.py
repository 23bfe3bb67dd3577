"""TeacherModeRelation: what runs in training, and is not trained, is in eval mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import RUN_WITHOUT_GRADIENTS, Frame, Window
from traincheck_plugin.invariants.model import VAR_TYPES, Hypothesis, Param, Severity, VarTypeParam
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
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.frames import frames_at, times_of
from traincheck_plugin.relations.lifecycle import completed
from traincheck_plugin.relations.naming import beginnings, full_name, largest_parts
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE, Int32, Role, Variable

TEACHING = VarTypeParam(
    var_type=VAR_TYPES["module"],
    attr_name="value",
    pre_value=False,
    quantifier="every",
    where=(("number", 1), ("held", False)),
)

MAX_KNOWN = 64
"""Combinations of what runs and what is held that are kept in mind."""

_SHOWN: tuple[tuple[Role, str, tuple[str, ...]], ...] = (
    ("backward", VAR_TYPES["module"], ("value", "number")),
    ("step", VAR_TYPES["parameter"], ("ran", "optimizer")),
)


class TeacherModeRelation(Relation):
    """What runs without gradients in training, and is no copy of what is trained, is in eval mode.

    ``forall optimizer steps s, modules m that act otherwise in training mode, in a part of a model
    of which all parameters ran without gradients only since the step before and are in no
    optimizer, unless those that are in one have as many of each of its shapes: not training(m,
    b)``, with b the last backward before s. The first failure in a row is excused.

    Catches a frozen teacher, and features of a frozen network, with dropout or with batch norm that
    follows each batch. Cannot see what acts otherwise by code of its own, nor a copy: averages and
    targets may be meant to have noise of their own.
    """

    name = "TeacherModeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        _check(params)
        return _Monitor()

    def describe(self, params: tuple[Param, ...]) -> str:
        _check(params)
        return "what runs without gradients in training, and is not trained, is in eval mode"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _check(params)
        attributes = {
            "backward": frozenset({("module", "value"), ("module", "number")}),
            "step": frozenset({("parameter", "ran"), ("parameter", "optimizer")}),
        }
        return Plan(functions=frozenset(), attributes=attributes)  # type: ignore[arg-type]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _check(params: tuple[Param, ...]) -> None:
    """Make sure that a hypothesis is the one of this relation.

    Raises:
        InvariantError: it is another.
    """
    if params != (TEACHING,):
        raise InvariantError(
            f"{TeacherModeRelation.name} expects a VarTypeParam about the mode of modules, got "
            f"{params}"
        )


class _Verdict(NamedTuple):
    """The teachers of a step.

    Attributes:
        row: of the step.
        wrong: codes of the modules in them that are in training mode.
    """

    row: int
    wrong: tuple[int, ...]


class _Teachers:
    """Follows the modes of modules, and which of them teach."""

    def __init__(self) -> None:
        self._modes: Frame | None = None
        # By what is shown, the places of the acting modules that teach: most often it is the same.
        self._known: dict[tuple[bytes, ...], list[int]] = {}

    def observe(self, window: Window) -> list[_Verdict]:
        """Return the verdicts on the steps of the next window."""
        events: list[tuple[int, int, Frame, Role]] = []
        for role, var_type, attributes in _SHOWN:
            rows = completed(window, window.rows_of_role(role))
            positions = frames_at(window, rows, var_type, attributes, is_begin=True)
            times = times_of(window, rows, window.calls.end[rows])
            for row, position, time in zip(
                rows.tolist(), positions.tolist(), times.tolist(), strict=True
            ):
                if position != NONE:
                    events.append((time, row, window.frames[position], role))
        verdicts = []
        for _, row, frame, role in sorted(events, key=itemgetter(0)):
            if role == "backward":
                self._modes = frame
            elif self._modes is not None:
                modes = self._modes
                places = self._places(window.catalog, frame, modes)
                if places:
                    trains = modes.columns["value"][places] > 0
                    wrong = modes.variables[places][trains].tolist()
                    verdicts.append(_Verdict(row, tuple(wrong)))
        return verdicts

    def _places(self, catalog: Catalog, shown: Frame, modes: Frame) -> list[int]:
        """Return where, among the modules, are those that act and teach."""
        alone = shown.columns["ran"] == RUN_WITHOUT_GRADIENTS
        if not alone.any():
            return []
        held = shown.columns["optimizer"] != NONE
        acting = modes.columns["number"] > 0
        arrays = shown.variables, alone, held, modes.variables, acting
        key = tuple(array.tobytes() for array in arrays)
        places = self._known.get(key)
        if places is None:
            variables = [catalog.variables[code] for code in shown.variables.tolist()]
            if len(self._known) == MAX_KNOWN:
                # What runs depends on the data.
                self._known.clear()
            teaching = _teaching(variables, (alone & ~held).tolist(), held.tolist())
            places = self._known[key] = [
                place
                for place in np.flatnonzero(acting).tolist()
                if not teaching.isdisjoint(beginnings(_path(catalog, modes.variables, place)))
            ]
        return places


def _teaching(variables: list[Variable], alone: list[bool], held: list[bool]) -> set[str]:
    """Return the largest parts that only run without gradients, and are no copies."""
    names = list(map(_name, variables))
    parts = largest_parts(
        (name for name, is_alone in zip(names, alone, strict=True) if is_alone),
        (name for name, is_alone in zip(names, alone, strict=True) if not is_alone),
    )
    trained = Counter(_shape(v) for v, is_held in zip(variables, held, strict=True) if is_held)
    shapes: dict[str, Counter[tuple[str, tuple[int, ...]]]] = {part: Counter() for part in parts}
    for variable, name in zip(variables, names, strict=True):
        for part in beginnings(name):
            if part in shapes:
                shapes[part][_shape(variable)] += 1
    return {part for part in parts if shapes[part] - trained}


def _name(variable: Variable) -> str:
    # The class of a model has a path, too.
    owner = variable.owner.replace(".", "/")
    return f"{owner}.{variable.name}" if variable.name else owner


def _path(catalog: Catalog, modules: Int32, place: int) -> str:
    return _name(catalog.variables[int(modules[place])])


def _shape(variable: Variable) -> tuple[str, tuple[int, ...]]:
    return variable.name.rpartition(".")[2], variable.shape


class _Monitor(Monitor):
    def __init__(self) -> None:
        self._teachers = PerRun(_Teachers)
        self._excuse = PerRun(Excuse)

    def observe(self, window: Window) -> Examples:
        excuse = self._excuse.of(window.catalog)
        judged = [
            one
            for one in self._teachers.of(window.catalog).observe(window)
            if excuse.counts(not one.wrong)
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([not one.wrong for one in judged], np.bool_),
            lambda index: _explain(
                [window.catalog.variables[code] for code in judged[index].wrong]
            ),
        )


def _explain(modules: list[Variable]) -> Explanation:
    names = sorted({full_name(module) for module in modules})
    shown = ", ".join(f"`{name}`" for name in names[:3]) + ", ..." * (len(names) > 3)
    verb = "is" if len(names) == 1 else "are"
    return Explanation(
        message=f"{shown} {verb} in training mode, in a part that is not trained",
        cause=Cause(
            fact="training mode",
            subjects=tuple(names),
            text=f"{shown} {verb} in training mode, with dropout and the statistics of each batch, "
            "though what they are in runs without gradients only and is in no optimizer: an "
            "`eval()` is missing, or a `train()` of what holds it comes after it",
        ),
    )


class _Proposer(Proposer):
    """Proposes the rule where something in eval mode teaches."""

    def __init__(self) -> None:
        self._teachers = PerRun(_Teachers)
        self._is_shown = False

    def observe(self, window: Window) -> None:
        verdicts = self._teachers.of(window.catalog).observe(window)
        self._is_shown |= any(not one.wrong for one in verdicts)

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._is_shown:
            yield Hypothesis(relation=TeacherModeRelation.name, params=(TEACHING,))
