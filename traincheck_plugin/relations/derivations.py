"""DerivationsRelation: what has no gradients is computed as it is in the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
from traincheck_plugin.vocabulary import FROM, NO_DERIVATION, WITHIN


class DerivationsRelation(Relation):
    """Targets, masks and inputs are computed by the operations of the reference.

    ``forall backwards b after a forward of C with the formula f, in the first steps that have one,
    forall derivations g < o that are named: in b or before it in the run, a function g is given
    something without gradients that o computed``. Operations are those that the user's code calls,
    from data or from what a model gives without gradients on; what only arranges values is none.
    Named are the derivations that all such losses of the reference have. Of one that the run had
    once nothing is said any longer; the first failure in a row is excused, and so is what follows
    when a state was loaded into an optimizer; and so is a loss that is computed within a forward
    where that of the reference is not, or the other way round.

    Catches a target that goes on beyond the end of an episode, for it is not multiplied by
    ``1 - done``, one that is standardised by its own batch, a mask by the opposite comparison, and
    an input that is not normalised. Cannot see other numbers, what data sets compute, nor anything
    live, since functions are not watched.
    """

    name = "DerivationsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_known(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        after, _, named = _known(params)
        several = [one for one in named if one != _WITHIN]
        shown = "; ".join(f"{one.function} by {', '.join(one.operations)}" for one in several[:3])
        more = "; ..." if len(several) > 3 else ""
        return f"what has no gradients in {whose(after)} is computed as it was: {shown}{more}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _known(params)
        # Followed while functions are recorded, whichever these are.
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Derivation(NamedTuple):
    """That something without gradients was computed where it meets what has some.

    Attributes:
        function: in which they meet.
        operations: that computed it, sorted.
    """

    function: str
    operations: tuple[str, ...]


_WITHIN = _Derivation(WITHIN, ("",))


def _known(params: tuple[Param, ...]) -> tuple[str, str, tuple[_Derivation, ...]]:
    """Return a class, the formula of its loss, and the derivations that are named.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if len(params) == 2 and params[0] == BACKWARD and isinstance(params[1], ConstantParam):
        value = params[1].value
        if isinstance(value, tuple) and len(value) > 2 and all(isinstance(v, str) for v in value):
            after, formula, *named = value
            if all(FROM in one or one == WITHIN for one in named) and set(named) != {WITHIN}:
                return after, formula, tuple(map(_derivation, named))
    raise InvariantError(
        f"{DerivationsRelation.name} expects the backward as APIParam, and a class, a formula and "
        f"derivations as ConstantParam, got {params}"
    )


def _derivation(text: str) -> _Derivation:
    function, _, operations = text.partition(FROM)
    return _Derivation(function, tuple(operations.split(",")))


def _texts(told: str) -> list[str]:
    return [] if told == NO_DERIVATION else told.split()


class _Monitor(Monitor):
    """Judges the losses after one class that have one formula.

    Args:
        after: the class.
        formula: of its loss.
        named: derivations of the reference.
    """

    def __init__(self, after: str, formula: str, named: tuple[_Derivation, ...]) -> None:
        self._of = after, formula
        self._is_within = _WITHIN in named
        self._early = PerRun(EarlyLosses)
        self._waiting: PerRun[set[_Derivation]] = PerRun(lambda: set(named))
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        rows, failed = [], []
        waiting = self._waiting.of(window.catalog)
        for loss in self._early.of(window.catalog).among(window):
            if (loss.after, loss.formula) != self._of or not loss.derivations:
                continue
            now = set(map(_derivation, _texts(loss.derivations)))
            if (_WITHIN in now) != self._is_within:
                continue
            waiting -= now
            if self._excuse.counts(not waiting):
                rows.append(loss.row)
                failed.append((sorted(waiting), now))
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array([not missing for missing, _ in failed], np.bool_),
            lambda index: self._explain(failed[index][0][0], failed[index][1]),
        )

    def _explain(self, missing: _Derivation, now: set[_Derivation]) -> Explanation:
        function, before = missing.function, Counter(missing.operations)
        others = sorted(one for one in now if one.function == function)
        if not others:
            told = "not at all"
        else:
            ways = [Counter(one.operations) for one in others]
            nearest = min(ways, key=lambda way: ((way - before) + (before - way)).total())
            parts = [
                f"{word} {', '.join(sorted(several.elements()))}"
                for word, several in (("with", nearest - before), ("without", before - nearest))
                if several
            ]
            told = " and ".join(parts)
        return Explanation(
            message=f"what {function} is given without gradients in {whose(self._of[0])} is "
            f"computed otherwise than in the reference: {told}",
            cause=Cause(
                fact="another derivation",
                subjects=(function,),
                text="a target, a mask or an input is computed otherwise: a factor, a comparison "
                "or a normalisation is another one, there or here",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._found: dict[tuple[str, str], Counter[str]] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            if loss.derivations:
                key = loss.after, loss.formula
                self._numbers[key] += 1
                self._found.setdefault(key, Counter()).update(_texts(loss.derivations))

    def hypotheses(self) -> Iterable[Hypothesis]:
        for key, found in self._found.items():
            number = self._numbers[key]
            named = sorted(text for text, times in found.items() if times == number)
            if set(named) - {WITHIN} and number >= MIN_BACKWARDS:
                value = ConstantParam(value=(*key, *named))
                yield Hypothesis(relation=DerivationsRelation.name, params=(BACKWARD, value))
