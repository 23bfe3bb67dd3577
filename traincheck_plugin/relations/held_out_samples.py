"""HeldOutSamplesRelation: what a model is evaluated on, it is not trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Hypothesis, Param, Severity, VarNameParam
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
from traincheck_plugin.relations.loads import MODULE_LOAD
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import (
    SAMPLE,
    SAMPLES_PLAN,
    Given,
    KnownSamples,
    given,
    samples_named,
)

NUM_RECENT = 64
"""Samples that are judged together: those that were given last."""

MIN_RECENT = 16
MAX_USUAL = 0.05
"""Share of these that are in the other part of the data in the reference: duplicates."""

MAX_SHARED = 0.25
"""Share of those that may be."""

MIN_AGAIN = 0.9
"""Share of some samples in a row that came again in the reference: with less there are always new
ones, and a longer run comes upon more of the other part."""


class HeldOutSamplesRelation(Relation):
    """What a model is evaluated on, it is not trained on.

    ``forall forwards f of a model of that class: share(f) <= MAX_SHARED``, where it was `MAX_USUAL`
    at most in all of the reference. The share is that of the samples which were given with
    gradients before, if f is without, and the other way round, among the `NUM_RECENT` samples that
    the same model was given last in the same way as those of f. Samples are the rows of the
    argument of that name. Of a large batch only the smallest keys are told, and judged is what
    would have been told. A state that is loaded was trained on who knows what. Proposed where both
    parts of the data came again in the reference, so that a longer run has no other samples.

    Catches a model that is evaluated on its training data, splits that overlap, and a model that is
    kept where each fold has its own. Cannot see samples that are cropped, turned or padded anew
    each time, and evaluations of a copy of the model.
    """

    name = "HeldOutSamplesRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_name(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        return f"no sample of `{_name(params)}` is trained on and evaluated"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _name(params)
        return SAMPLES_PLAN

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _name(params: tuple[Param, ...]) -> str:
    """Return the name of the argument that a rule is about.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    match params:
        case (VarNameParam(var_type=kind, var_name=name),) if kind == SAMPLE:
            return name
    raise InvariantError(
        f"{HeldOutSamplesRelation.name} expects samples as one VarNameParam, got {params}"
    )


class _Part:
    """What a model was given with gradients, or without.

    Attributes:
        known: the samples.
        again: of the last `MIN_RECENT`, whether they came again.
        shared: of the last `NUM_RECENT`, whether they were in the other part.
    """

    def __init__(self) -> None:
        self.known = KnownSamples()
        self.again: deque[bool] = deque(maxlen=MIN_RECENT)
        self.shared: deque[bool] = deque(maxlen=NUM_RECENT)

    def give(self, keys: list[int], other: _Part) -> bool:
        """Take note of what is given now; return whether there is something to judge."""
        self.again.extend(self.known.among(keys))
        self.known.add(keys)
        if not other.known:
            return False
        judged = other.known.among(keys)
        self.shared.extend(judged)
        return bool(judged) and len(self.shared) >= MIN_RECENT

    def is_known(self) -> bool:
        """Return whether what was given last is known from before."""
        return len(self.again) >= MIN_RECENT and sum(self.again) >= MIN_AGAIN * len(self.again)


class _Verdict(NamedTuple):
    """The samples of a forward, with those before.

    Attributes:
        row: of the forward.
        name: of the samples.
        trains: whether it is with gradients.
        shared: number of samples that are in the other part of the data.
        number: of all of them.
    """

    row: int
    name: str
    trains: bool
    shared: int
    number: int

    def share(self) -> float:
        return self.shared / self.number


class _Models:
    """Follows what models are given.

    Attributes:
        parts: of each model, by its label, and each of its arguments, what was given with gradients
            and without.
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, tuple[_Part, _Part]]] = {}

    def observe(self, window: Window) -> Iterator[_Verdict]:
        """Yield the verdicts on the next window."""
        begin, objects = window.calls.begin, window.catalog.objects
        loads = [(row, None) for row in window.rows_of_name(MODULE_LOAD).tolist()]
        events: list[tuple[int, Given | None]] = [
            *loads,
            *((one.row, one) for one in given(window)),
        ]
        for row, one in sorted(events, key=lambda event: int(begin[event[0]])):
            if one is None:
                self.parts.pop(objects[int(window.calls.object[row])], None)
                continue
            arguments = self.parts.setdefault(one.model, {})
            trained, evaluated = arguments.setdefault(one.name, (_Part(), _Part()))
            part, other = (trained, evaluated) if one.trains else (evaluated, trained)
            if part.give(one.keys, other):
                yield _Verdict(row, one.name, one.trains, sum(part.shared), len(part.shared))


class _Monitor(Monitor):
    """Judges the samples of one name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._models = PerRun(_Models)

    def observe(self, window: Window) -> Examples:
        models = self._models.of(window.catalog)
        judged = [one for one in models.observe(window) if one.name == self._name]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([one.share() <= MAX_SHARED for one in judged], np.bool_),
            lambda index: self._explain(judged[index]),
        )

    def _explain(self, one: _Verdict) -> Explanation:
        model = self._name.partition(".")[0]
        did, before = ("trained on", "evaluated") if one.trains else ("evaluated", "trained on")
        return Explanation(
            message=(
                f"{one.shared} of {one.number} samples of `{self._name}` that are {did} were "
                f"{before} before"
            ),
            cause=Cause(
                fact="samples are trained on and evaluated",
                subjects=(model,),
                text=f"{model} is evaluated on what it is trained on: the parts of the data "
                "overlap, one stands for the other, or the model was kept where a healthy run has "
                "a new one",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._models = PerRun(_Models)
        self._coming_again: set[str] = set()
        self._refuted: set[str] = set()

    def observe(self, window: Window) -> None:
        models = self._models.of(window.catalog)
        for one in models.observe(window):
            if one.share() > MAX_USUAL:
                self._refuted.add(one.name)
        for arguments in models.parts.values():
            for name, (trained, evaluated) in arguments.items():
                if trained.is_known() and evaluated.is_known():
                    self._coming_again.add(name)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for name in sorted(self._coming_again - self._refuted):
            yield Hypothesis(relation=HeldOutSamplesRelation.name, params=(samples_named(name),))
