"""EvalModeRelation: what is in eval mode in a healthy training stays in it."""

from __future__ import annotations

from collections.abc import Iterable

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
from traincheck_plugin.relations.moments import Moments, moments_at_begin
from traincheck_plugin.relations.named import Named
from traincheck_plugin.relations.naming import beginnings, full_name, largest_parts, part_of
from traincheck_plugin.relations.params import three
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import Bool, Int64, Variable

MODULE = VAR_TYPES["module"]
IN_EVAL_MODE = VarTypeParam(var_type=MODULE, attr_name="value", pre_value=False, quantifier="every")
BACKWARD = "torch.autograd.backward"

MIN_BACKWARDS = 10
"""Backward passes that show what stays in eval mode."""

MAX_PARTS = 64
"""Parts that a rule names: where more are, the model is mixed in some other way."""


class EvalModeRelation(Relation):
    """What was in eval mode at each backward of the reference is in eval mode.

    ``forall backwards b of the first n training steps, forall modules m of parts: not training(m,
    begin(b))``. Parts are the outermost modules that were so in all of the n steps of the
    reference, with all that they hold: later a part may be trained.

    Catches a frozen teacher, or a frozen backbone, that a `train()` of what holds it puts into
    training mode, with its dropout. Cannot see a model that is used between two backwards alone.
    """

    name = "EvalModeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_claim(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        parts, length = _claim(params)
        shown = ", ".join(f"`{part}`" for part in parts[:3])
        more = f" and {len(parts) - 3} other parts" if len(parts) > 3 else ""
        return f"{shown}{more} stay in eval mode in the first {length} training steps"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _claim(params)
        wanted = frozenset({("module", "value")})
        return Plan(functions=frozenset(), attributes={"backward": wanted})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _claim(params: tuple[Param, ...]) -> tuple[tuple[str, ...], int]:
    """Return the parts that a hypothesis is about, and for how many steps.

    Raises:
        InvariantError: it is none of this relation.
    """
    name = EvalModeRelation.name
    rule, parts, length = three(name, params, VarTypeParam, ConstantParam, ConstantParam)
    named = parts.value
    if rule == IN_EVAL_MODE and type(length.value) is int and isinstance(named, tuple):
        told = tuple(part for part in named if isinstance(part, str))
        if told and told == named:
            return told, length.value
    raise InvariantError(
        f"{name} expects the flags of modules, names of parts and a number of steps; got {params}"
    )


class _Steps:
    """Tells how many training steps lie between the first backward and another."""

    def __init__(self) -> None:
        self._first: int | None = None

    def of(self, window: Window, rows: Int64) -> Int64:
        steps: Int64 = window.catalog.contexts.column("step")[window.calls.context[rows]]
        if self._first is None:
            self._first = int(steps.min())
        return steps - self._first


def _shown(window: Window) -> list[Moments]:
    found = moments_at_begin(window, BACKWARD, MODULE)
    return [moments for moments in found if moments.has("value")]


class _Monitor(Monitor):
    """Judges the modules of some parts.

    Args:
        parts: their names.
        length: how many steps are judged.
    """

    def __init__(self, parts: tuple[str, ...], length: int) -> None:
        self._length = length
        self._named = Named(MODULE, parts, part_of(frozenset(parts)))
        self._steps = PerRun(_Steps)

    def observe(self, window: Window) -> Examples:
        rows: list[int] = []
        trains: list[tuple[int, ...]] = []
        steps = self._steps.of(window.catalog)
        for moments in _shown(window):
            is_early = steps.of(window, moments.calls) < self._length
            is_named = self._named.among(window.catalog)[moments.variables]
            if not is_named.any():
                continue
            codes = moments.variables[is_named]
            flags: Bool = moments.column("value")[:, is_named] > 0
            for index in np.flatnonzero(is_early).tolist():
                rows.append(int(moments.calls[index]))
                trains.append(tuple(codes[flags[index]].tolist()))
        if not rows:
            return NO_EXAMPLES
        order = np.argsort(rows, kind="stable")
        told = [trains[index] for index in order.tolist()]
        return Examples.of_calls(
            window,
            np.array(rows, np.int64)[order],
            np.array([not codes for codes in told], np.bool_),
            lambda index: _explain([window.catalog.variables[code] for code in told[index]]),
        )


def _explain(modules: list[Variable]) -> Explanation:
    names = {full_name(module) for module in modules}
    outermost = sorted({next(p for p in beginnings(name) if p in names) for name in names})
    shown = ", ".join(f"`{name}`" for name in outermost[:3])
    more = ", ..." if len(outermost) > 3 else ""
    be = "is" if len(outermost) == 1 else "are"
    return Explanation(
        message=f"{shown}{more} {be} in training mode when backward runs; in the reference in eval "
        "mode",
        cause=Cause(
            fact="training mode",
            subjects=tuple(outermost),
            text=f"{shown}{more} {be} in training mode, with dropout and the statistics of each "
            "batch: train() of a model reaches all that it holds, frozen parts included",
        ),
    )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._steps = PerRun(_Steps)
        self._in_eval: dict[str, bool] = {}
        self._number = 0
        self._length = 0
        self._known: PerRun[dict[bytes, list[str]]] = PerRun(dict)

    def observe(self, window: Window) -> None:
        steps = self._steps.of(window.catalog)
        for moments in _shown(window):
            self._number += len(moments.calls)
            self._length = max(self._length, int(steps.of(window, moments.calls).max()) + 1)
            names = self._names(window, moments)
            trained: list[bool] = np.any(moments.column("value") > 0, axis=0).tolist()
            for name, trains in zip(names, trained, strict=True):
                self._in_eval[name] = self._in_eval.get(name, True) and not trains

    def _names(self, window: Window, moments: Moments) -> list[str]:
        known = self._known.of(window.catalog)
        key = moments.variables.tobytes()
        if key not in known:
            variables = window.catalog.variables
            known[key] = [full_name(variables[code]) for code in moments.variables.tolist()]
        return known[key]

    def hypotheses(self) -> Iterable[Hypothesis]:
        steady = self._steady()
        if self._number < MIN_BACKWARDS or not 0 < len(steady) <= MAX_PARTS:
            return
        yield Hypothesis(
            relation=EvalModeRelation.name,
            params=(
                IN_EVAL_MODE,
                ConstantParam(value=tuple(steady)),
                ConstantParam(value=self._length),
            ),
        )

    def _steady(self) -> list[str]:
        """Return the outermost modules that never are in training mode, nor anything in them."""
        trained = {name for name, in_eval in self._in_eval.items() if not in_eval}
        above = {part for name in trained for part in beginnings(name)}
        return sorted(largest_parts(self._in_eval.keys() - above, trained))
