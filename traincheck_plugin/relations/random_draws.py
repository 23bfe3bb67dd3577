"""RandomDrawsRelation: what is drawn at random goes together where it went together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from string import digits
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.losses import BACKWARD, MIN_BACKWARDS, EarlyLosses, whose
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.per_run import PerRun


class Draw(NamedTuple):
    """Something drawn at random.

    Attributes:
        function: that drew it.
        uses: where it met other tensors.
    """

    function: str
    uses: frozenset[str]


class RandomDrawsRelation(Relation):
    """What is drawn at random is used in all places where it was used in the reference.

    ``forall backwards b after a forward of C, in the first steps that have one, draws (f, uses) of
    the reference, draws (f, part) of b with part < uses: some draw (f, more) of b has uses <=
    more``. A draw is what one call of a random function returns, with what is computed of draws
    alone, such as a mask or a sorted index; its uses are the functions in which it meets other
    tensors since the loss before. The first failure in a row is excused, and nothing is said of
    what is no longer drawn: noise may be switched off.

    Catches a target noise that is drawn anew, a permutation of inputs that their labels do not
    follow, and time steps that a network is not told. Cannot see what NumPy draws, what data sets
    draw for each sample, nor inside of compiled functions.
    """

    name = "RandomDrawsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_known(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        after, draw = _known(params)
        return (
            f"for {whose(after)}, what {draw.function} draws goes into all of "
            f"{', '.join(_functions(draw.uses))}"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


_USE = r"\w+:(bool|float|int)\d+(\+(bool|float|int)\d+)*"
_DRAW = re.compile(rf"\w+>{_USE}(,{_USE})*")


def _known(params: tuple[Param, ...]) -> tuple[str, Draw]:
    """Return a class, and a draw for its losses.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if len(params) == 2 and params[0] == BACKWARD and isinstance(params[1], ConstantParam):
        value = params[1].value
        if isinstance(value, tuple) and len(value) == 2:
            after, text = value
            if isinstance(after, str) and isinstance(text, str) and _DRAW.fullmatch(text):
                return after, _parse(text)[0]
    raise InvariantError(
        f"{RandomDrawsRelation.name} expects the backward as APIParam, and a class with a draw, as "
        f"rand>mul:float2,add:float2, as ConstantParam, got {params}"
    )


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[Draw, ...]:
    drawn = (token.partition(">") for token in text.split())
    return tuple(Draw(function, frozenset(uses.split(","))) for function, _, uses in drawn)


def _functions(uses: Iterable[str]) -> list[str]:
    """Return where a draw goes, spelled: to multiply a matrix of floats is ``mul (float, 2d)``."""
    return sorted(_spelled(use) for use in uses)


def _spelled(use: str) -> str:
    function, _, kinds = use.partition(":")
    names = [(kind, kind.rstrip(digits)) for kind in kinds.split("+")]
    told = " and ".join(f"{name}, {kind.removeprefix(name)}d" for kind, name in names)
    return f"{function} ({told})"


def _goes_on(draw: Draw, draws: Iterable[Draw]) -> bool | None:
    """Return whether one of *draws* goes where *draw* goes; None where none goes to a part."""
    alike = [one.uses for one in draws if one.function == draw.function]
    if any(draw.uses <= uses for uses in alike):
        return True
    return None if draw.uses.isdisjoint(use for uses in alike for use in uses) else False


class _Monitor(Monitor):
    """Judges the draws for losses after one class.

    Args:
        after: the class.
        draw: of the reference.
    """

    def __init__(self, after: str, draw: Draw) -> None:
        self._after = after
        self._draw = draw
        self._early = PerRun(EarlyLosses)
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        rows, holds, told = [], [], []
        for loss in self._early.of(window.catalog).among(window):
            if loss.after != self._after or not loss.draws:
                continue
            draws = _parse(loss.draws)
            held = _goes_on(self._draw, draws)
            if held is not None and self._excuse.counts(held):
                rows.append(loss.row)
                holds.append(held)
                told.append(draws)
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda index: self._explain(told[index]),
        )

    def _explain(self, draws: tuple[Draw, ...]) -> Explanation:
        name, uses = self._draw
        parts = {one.uses & uses for one in draws if one.function == name} - {frozenset()}
        together = sorted((_functions(part) for part in parts), key=lambda one: (-len(one), one))
        missing = _functions(uses.difference(*parts))
        message = f"what {name} draws for {whose(self._after)} goes into {', '.join(together[0])}"
        if len(together) > 1:
            message += "".join(f", another draw into {', '.join(one)}" for one in together[1:])
            text = (
                f"{name} draws anew what the reference draws once: what should be the same, as "
                "noise and its target, is not"
            )
        else:
            text = (
                f"what {name} draws does not go into {', '.join(missing)}: inputs and labels, or "
                "what is made of one draw, do not fit each other"
            )
        message += f"; in the reference one goes into all of {', '.join(_functions(uses))}"
        return Explanation(
            message=message, cause=Cause(fact="another draw", subjects=(name,), text=text)
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._draws: dict[str, set[Draw]] = {}
        self._num_seen: dict[str, int] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            draws = _parse(loss.draws)
            if loss.after not in self._draws:
                self._draws[loss.after] = set(draws)
            else:
                self._draws[loss.after] = _common(self._draws[loss.after], draws)
            self._num_seen[loss.after] = self._num_seen.get(loss.after, 0) + 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        for after, draws in self._draws.items():
            if self._num_seen[after] < MIN_BACKWARDS:
                continue
            for function, uses in sorted(draws):
                if len(uses) > 1:
                    value = ConstantParam(value=(after, f"{function}>{','.join(sorted(uses))}"))
                    yield Hypothesis(relation=RandomDrawsRelation.name, params=(BACKWARD, value))


def _common(known: Iterable[Draw], draws: Iterable[Draw]) -> set[Draw]:
    """Return for each known draw what it has most in common with one of *draws*."""
    common = set()
    for one in known:
        shared = [one.uses & other.uses for other in draws if other.function == one.function]
        uses = max(shared, key=lambda part: (len(part), sorted(part)), default=frozenset())
        if uses:
            common.add(Draw(one.function, uses))
    return common
