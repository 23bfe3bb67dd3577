"""SharedSamplesRelation: forwards of a step are given other samples where they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
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
from traincheck_plugin.relations.lifecycle import completed
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.params import single
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import SAMPLES_PLAN, given

MIN_STEPS = 10
"""So many steps show which of their forwards are given the same."""

MIN_SAMPLES = 4
"""Fewer may be the same by chance."""

MAX_FORWARDS = 8
"""Steps to which more led are left out."""

Pattern = tuple[int, ...]
"""Of each forward, the first one that is given the same."""


class SharedSamplesRelation(Relation):
    """Forwards that lead to a step are given different samples where they were.

    ``forall steps s of optimizers with forwards f1 .. fn since the step before, of models of the
    classes C1 .. Cn, forall i < j: samples(fi) != samples(fj)``, where that was so in all such
    steps of the reference. Forwards without gradients count, too. The first failure in a row is
    excused.

    Catches a state and the one after it that are the same array, a second view that is the first
    one, and a discriminator that is given real images for generated ones. Cannot see steps that
    have other forwards than in the reference.
    """

    name = "SharedSamplesRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_known(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        roots, pattern = _known(params)
        number = len(set(pattern))
        return f"the {len(roots)} forwards of a step, of {_listed(roots)}, have {number} inputs"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _known(params)
        return SAMPLES_PLAN

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _listed(roots: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(roots))


def _known(params: tuple[Param, ...]) -> tuple[tuple[str, ...], Pattern]:
    """Return the classes of the forwards, and which of these are given the same.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    value = single(SharedSamplesRelation.name, params, ConstantParam).value
    match value:
        case (tuple(roots), tuple(pattern)) if (
            1 < len(roots) == len(pattern)
            and all(isinstance(root, str) for root in roots)
            and all(isinstance(first, int) and 0 <= first <= i for i, first in enumerate(pattern))
        ):
            return roots, pattern
    raise InvariantError(
        f"{SharedSamplesRelation.name} expects classes, and for each forward the first that is "
        f"given the same, got {params}"
    )


class _Step(NamedTuple):
    """The forwards that lead to a step of an optimizer.

    Attributes:
        row: of the step.
        roots: classes of the models.
        pattern: which of the forwards are given the same.
    """

    row: int
    roots: tuple[str, ...]
    pattern: Pattern


class _Forwards:
    """Collects the forwards that tell their samples, from one step to the next."""

    def __init__(self) -> None:
        self._pending: list[tuple[str, list[tuple[int, ...]]]] = []

    def observe(self, window: Window) -> Iterator[_Step]:
        """Yield the steps of the next window to which several forwards led."""
        if not window.observed:
            self._pending.clear()
            return
        forwards: dict[int, tuple[str, list[tuple[int, ...]]]] = {}
        for one in given(window):
            if len(one.keys) >= MIN_SAMPLES:
                _, keys = forwards.setdefault(one.row, (class_name(one.model), []))
                keys.append(tuple(sorted(one.keys)))
        steps = set(completed(window, window.rows_of_role("step")).tolist())
        # Rows are in the order in which calls end.
        for row in sorted(forwards.keys() | steps):
            if row in forwards:
                self._pending = [*self._pending, forwards[row]][-MAX_FORWARDS - 1 :]
            elif self._pending:
                roots = tuple(root for root, _ in self._pending)
                several = [tuple(sorted(keys)) for _, keys in self._pending]
                self._pending.clear()
                if 1 < len(roots) <= MAX_FORWARDS:
                    yield _Step(row, roots, tuple(several.index(keys) for keys in several))


def _merged(pattern: Pattern, known: Pattern) -> tuple[int, int] | None:
    """Return two forwards that are given the same, and are not in *known*; else None."""
    for later, first in enumerate(pattern):
        if first != later and known[first] != known[later]:
            return first, later
    return None


class _Monitor(Monitor):
    """Judges the steps with forwards of some classes.

    Args:
        roots: the classes, in order.
        pattern: which of the forwards are given the same in the reference.
    """

    def __init__(self, roots: tuple[str, ...], pattern: Pattern) -> None:
        self._roots = roots
        self._pattern = pattern
        self._excuse = Excuse()
        self._forwards = PerRun(_Forwards)

    def observe(self, window: Window) -> Examples:
        judged: list[tuple[int, tuple[int, int] | None]] = []
        for step in self._forwards.of(window.catalog).observe(window):
            if step.roots == self._roots:
                merged = _merged(step.pattern, self._pattern)
                if self._excuse.counts(merged is None):
                    judged.append((step.row, merged))
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([row for row, _ in judged], np.int64),
            np.array([merged is None for _, merged in judged], np.bool_),
            lambda index: self._explain(judged[index][1]),
        )

    def _explain(self, merged: tuple[int, int] | None) -> Explanation:
        first, second = merged or (0, 0)
        one, other = self._roots[first], self._roots[second]
        who = f"{one} is" if one == other else f"{one} and {other} are"
        return Explanation(
            message=f"{who} given the same samples in the forwards {first + 1} and {second + 1} of "
            "a step; in the reference others",
            cause=Cause(
                fact="the same samples again",
                subjects=tuple(dict.fromkeys((one, other))),
                text=f"{who} given one batch twice where a healthy run has two, as a state and the "
                "next one, or two views: one is the memory of the other, or was used for it",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._forwards = PerRun(_Forwards)
        self._number: Counter[tuple[str, ...]] = Counter()
        self._patterns: dict[tuple[str, ...], set[Pattern]] = {}

    def observe(self, window: Window) -> None:
        for step in self._forwards.of(window.catalog).observe(window):
            self._number[step.roots] += 1
            self._patterns.setdefault(step.roots, set()).add(step.pattern)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for roots, patterns in self._patterns.items():
            if self._number[roots] >= MIN_STEPS and len(patterns) == 1:
                [pattern] = patterns
                if len(set(pattern)) > 1:
                    param = ConstantParam(value=(roots, pattern))
                    yield Hypothesis(relation=SharedSamplesRelation.name, params=(param,))
