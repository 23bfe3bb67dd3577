"""RandomDrawsRelation: what is drawn at random goes where it went in the reference."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
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
    more``, of each draw of f with a part of the uses where that was true of each in all of the
    reference, and ``forall such b, draws (f, uses) of the reference, draws (g, more) of b with uses
    and more not disjoint: distribution(g) = distribution(f)``, of uses of which that was true in
    all of the reference. A draw is what one call of a random function returns, with what is
    computed of draws alone, such as a mask or a sorted index; its uses are the functions in which
    it meets other tensors since the loss before. The first failure in a row is excused, and nothing
    is said of what is no longer drawn: noise may be switched off.

    Catches a target noise that is drawn anew, a permutation of inputs that their labels do not
    follow, time steps that a network is not told, and uniform numbers in place of normal ones.
    Cannot see what NumPy draws, what data sets draw for each sample, nor inside of compiled
    functions.
    """

    name = "RandomDrawsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        after, draw, claim = _known(params)
        return _MONITORS[claim](after, draw)

    def describe(self, params: tuple[Param, ...]) -> str:
        after, draw, claim = _known(params)
        where = ", ".join(_functions(draw.uses))
        if claim == SOURCE:
            return f"for {whose(after)}, what goes into {where} is drawn by {draw.function}"
        each = "each time " if claim == EACH else ""
        return f"for {whose(after)}, what {draw.function} draws goes {each}into all of {where}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


TOGETHER, EACH, SOURCE = ">", "=", "<"
"""What is claimed: one draw goes to all of some places, each does that goes to any of them, or what
goes there is of one distribution."""

_DISTRIBUTIONS = {
    **dict.fromkeys(("randn", "randn_like", "normal"), "normal"),
    **dict.fromkeys(("rand", "rand_like", "uniform"), "uniform"),
    **dict.fromkeys(("randint", "randint_like", "random"), "whole numbers"),
}


def _distribution(function: str) -> str:
    return _DISTRIBUTIONS.get(function, function)


_USE = r"\w+:(?:bool|float|int)\d+(?:\+(?:bool|float|int)\d+)*"
_DRAW = re.compile(rf"(\w+)([>=<])({_USE}(?:,{_USE})*)")


def _known(params: tuple[Param, ...]) -> tuple[str, Draw, str]:
    """Return a class, a draw for its losses, and what is claimed of it.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if len(params) == 2 and params[0] == BACKWARD and isinstance(params[1], ConstantParam):
        value = params[1].value
        if isinstance(value, tuple) and len(value) == 2:
            after, text = value
            found = _DRAW.fullmatch(text) if isinstance(text, str) else None
            if isinstance(after, str) and found is not None:
                function, claim, uses = found.groups()
                return after, Draw(function, frozenset(uses.split(","))), claim
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


def _parts(known: Draw, draws: Iterable[Draw]) -> set[frozenset[str]]:
    """Return to which of its places each draw of the same function goes that goes to any."""
    parts = {one.uses & known.uses for one in draws if one.function == known.function}
    return parts - {frozenset()}


class _OfDraws(Monitor):
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
            held = self._judge(draws)
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

    @abstractmethod
    def _judge(self, draws: Iterable[Draw]) -> bool | None:
        """Return whether the draws for a loss are as they should be; None where nothing tells."""

    @abstractmethod
    def _explain(self, draws: Iterable[Draw]) -> Explanation:
        """Return why they are not."""


class _Together(_OfDraws):
    """Judges whether one draw goes where one did."""

    def _judge(self, draws: Iterable[Draw]) -> bool | None:
        parts = _parts(self._draw, draws)
        return self._draw.uses in parts if parts else None

    def _explain(self, draws: Iterable[Draw]) -> Explanation:
        name, uses = self._draw
        parts = _parts(self._draw, draws) - {uses}
        together = sorted((_functions(part) for part in parts), key=lambda one: (-len(one), one))
        missing = _functions(uses.difference(*parts))
        message = f"what {name} draws for {whose(self._after)} goes into {', '.join(together[0])}"
        if len(together) > 1:
            message += "".join(f", another draw into {', '.join(one)}" for one in together[1:])
            text = (
                f"{name} draws anew what the reference draws once: what should be the same, as "
                "noise and its target, or the order of inputs and labels, is not"
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


class _Each(_Together):
    """Judges whether each draw goes where all did."""

    def _judge(self, draws: Iterable[Draw]) -> bool | None:
        parts = _parts(self._draw, draws)
        return parts == {self._draw.uses} if parts else None


class _Source(_OfDraws):
    """Judges whether what goes there is drawn from the same distribution."""

    def _judge(self, draws: Iterable[Draw]) -> bool | None:
        functions = self._functions(draws)
        return not self._others(functions) if functions else None

    def _functions(self, draws: Iterable[Draw]) -> set[str]:
        return {one.function for one in draws if not one.uses.isdisjoint(self._draw.uses)}

    def _others(self, functions: Iterable[str]) -> list[str]:
        known = _distribution(self._draw.function)
        return sorted(one for one in functions if _distribution(one) != known)

    def _explain(self, draws: Iterable[Draw]) -> Explanation:
        others = " and ".join(self._others(self._functions(draws)))
        name, where = self._draw.function, ", ".join(_functions(self._draw.uses))
        return Explanation(
            message=(
                f"what goes into {where} for {whose(self._after)} is drawn by {others}; in the "
                f"reference by {name}"
            ),
            cause=Cause(
                fact="another distribution",
                subjects=(name,),
                text=f"random numbers are of another distribution than in a healthy run: {others} "
                f"draws them in place of {name}",
            ),
        )


_MONITORS = {TOGETHER: _Together, EACH: _Each, SOURCE: _Source}


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._draws: dict[str, set[Draw]] = {}
        self._seen: dict[str, set[Draw]] = {}
        self._num_seen: Counter[str] = Counter()
        self._sources: dict[tuple[str, str], Counter[str]] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            draws = _parse(loss.draws)
            if loss.after not in self._draws:
                self._draws[loss.after] = set(draws)
            else:
                self._draws[loss.after] = _common(self._draws[loss.after], draws)
            self._seen.setdefault(loss.after, set()).update(draws)
            self._num_seen[loss.after] += 1
            for function, use in {(draw.function, use) for draw in draws for use in draw.uses}:
                self._sources.setdefault((loss.after, use), Counter())[function] += 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        for after, draws in self._draws.items():
            if self._num_seen[after] >= MIN_BACKWARDS:
                for draw in sorted(draws):
                    if len(draw.uses) > 1:
                        is_each = _parts(draw, self._seen[after]) == {draw.uses}
                        yield _hypothesis(after, *draw, EACH if is_each else TOGETHER)
        sources: dict[tuple[str, str], list[str]] = {}
        for (after, use), functions in self._sources.items():
            if len(set(map(_distribution, functions))) == 1:
                [(function, number)] = functions.most_common(1)
                if number >= MIN_BACKWARDS:
                    sources.setdefault((after, function), []).append(use)
        for (after, function), several in sources.items():
            yield _hypothesis(after, function, several, SOURCE)


def _hypothesis(after: str, function: str, uses: Iterable[str], claim: str) -> Hypothesis:
    value = after, f"{function}{claim}{','.join(sorted(uses))}"
    return Hypothesis(
        relation=RandomDrawsRelation.name, params=(BACKWARD, ConstantParam(value=value))
    )


def _common(known: Iterable[Draw], draws: Iterable[Draw]) -> set[Draw]:
    """Return for each known draw what it has most in common with one of *draws*."""
    common = set()
    for one in known:
        shared = [one.uses & other.uses for other in draws if other.function == one.function]
        uses = max(shared, key=lambda part: (len(part), sorted(part)), default=frozenset())
        if uses:
            common.add(Draw(one.function, uses))
    return common
