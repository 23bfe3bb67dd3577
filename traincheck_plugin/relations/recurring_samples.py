"""RecurringSamplesRelation: samples come again in later epochs where they did."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    ConstantParam,
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
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import (
    SAMPLE,
    SAMPLES_PLAN,
    Given,
    KnownSamples,
    given,
    samples_named,
)

AGAIN, NEVER = "again", "never"
"""Whether samples of earlier epochs come again in later ones."""

NUM_RECENT = 64
"""Samples that are judged together: those that were given last."""

MIN_RECENT = 16
MIN_VERDICTS = 10
"""So many verdicts of the reference show whether samples come again."""

MAX_USUAL = 0.05
"""Share of them that is otherwise in the reference: duplicates, and samples that are left out."""

MAX_OTHERS = 0.75
"""Share of them that may be."""

MIN_SIZE = 0.5
"""Part of the samples in an epoch of the reference that an epoch of the run must have, so that they
are expected to come again: with less it may be cut short to try something."""


class RecurringSamplesRelation(Relation):
    """Samples that were trained on in an earlier epoch come again, or never do, as they did.

    ``forall training forwards f in the epochs 2 to n, with those of the reference: share(f) >= 1 -
    MAX_OTHERS``, or ``share(f) <= MAX_OTHERS``, where it was `MAX_USUAL` from 1, or from 0, at most
    in all of the reference. The share is that of the samples which the same model was given in an
    earlier epoch, among the `NUM_RECENT` that it was given last. Samples are the rows of the
    argument of that name. Of a large batch only the smallest keys are told, and judged is what
    would have been told. An epoch in which a state of an optimizer is loaded, or a step was not
    observed, is none of the earlier ones, for it is not known as a whole.

    Catches random transforms that are switched off or seeded alike in each epoch, noise that is
    drawn once, and a data set that is changed in place each time it is read. Cannot see what
    happens within the first epoch, nor a loop that has no data loader to count epochs by.
    """

    name = "RecurringSamplesRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_rule(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        rule = _rule(params)
        do = "come again" if rule.claim == AGAIN else "never come again"
        return f"samples of `{rule.name}` {do} in later ones of {rule.num_epochs} epochs"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _rule(params)
        return SAMPLES_PLAN

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Rule(NamedTuple):
    """A hypothesis.

    Attributes:
        name: of the samples.
        claim: what is claimed of them.
        num_epochs: that the reference has.
        size: number of samples that are told of one of its epochs.
    """

    name: str
    claim: str
    num_epochs: int
    size: int


def _rule(params: tuple[Param, ...]) -> _Rule:
    """Return the hypothesis with these parameters.

    Raises:
        InvariantError: they are none of this relation.
    """
    relation = RecurringSamplesRelation.name
    who, told = pair(relation, params, VarNameParam, ConstantParam)
    match told.value:
        case ("again" | "never" as claim, int(num_epochs), int(size)) if who.var_type == SAMPLE:
            return _Rule(who.var_name, claim, num_epochs, size)
    raise InvariantError(
        f"{relation} expects samples, and {AGAIN!r} or {NEVER!r} with the numbers of epochs and of "
        f"samples; got {params}"
    )


class _Verdict(NamedTuple):
    """The samples of a training forward in a later epoch, with those before.

    Attributes:
        row: of the forward.
        name: of the samples.
        epoch: from 0 on.
        size: number of samples told of the largest earlier epoch.
        again: number of samples that were given in an earlier epoch.
        number: of all of them.
    """

    row: int
    name: str
    epoch: int
    size: int
    again: int
    number: int

    def others(self, claim: str) -> float:
        """Return the share that is not as is claimed."""
        share = self.again / self.number
        return 1 - share if claim == AGAIN else share


class _Seen:
    """What a model was given as one argument.

    Args:
        epoch: that it is first given something in.
        is_whole: whether nothing of that epoch was missed.
    """

    def __init__(self, epoch: int, is_whole: bool) -> None:
        self._epoch = epoch
        self._is_whole = is_whole
        self._earlier = KnownSamples()
        self._size = 0
        self._current: list[list[int]] = []
        self._again: deque[bool] = deque(maxlen=NUM_RECENT)

    def give(self, one: Given) -> _Verdict | None:
        """Take note of the samples of a forward; return what there is to judge."""
        if one.epoch != self._epoch:
            if self._is_whole:
                self._size = max(self._size, sum(map(len, self._current)))
                for keys in self._current:
                    self._earlier.add(keys)
            self._epoch, self._is_whole = one.epoch, True
            self._current.clear()
        self._current.append(one.keys)
        if not self._earlier:
            return None
        judged = self._earlier.among(one.keys)
        self._again.extend(judged)
        if not judged or len(self._again) < MIN_RECENT:
            return None
        again = sum(self._again)
        return _Verdict(one.row, one.name, one.epoch, self._size, again, len(self._again))


class _Models:
    """Follows what models are trained on."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._is_whole = True

    def observe(self, window: Window) -> Iterator[_Verdict]:
        """Yield the verdicts on the next window."""
        if not window.observed:
            self._forget()
            return
        begin = window.calls.begin
        loads = [int(begin[row]) for row in window.rows_of_name(OPTIMIZER_LOAD).tolist()]
        for one in given(window):
            if not one.trains:
                continue
            while loads and loads[0] < begin[one.row]:
                del loads[0]
                self._forget()
            key = one.model, one.name
            if key not in self._seen:
                self._seen[key] = _Seen(one.epoch, self._is_whole)
            verdict = self._seen[key].give(one)
            if verdict is not None:
                yield verdict
        if loads:
            self._forget()

    def _forget(self) -> None:
        self._seen.clear()
        self._is_whole = False


class _Monitor(Monitor):
    """Judges the samples of one name."""

    def __init__(self, rule: _Rule) -> None:
        self._rule = rule
        self._models = PerRun(_Models)

    def observe(self, window: Window) -> Examples:
        rule = self._rule
        least = MIN_SIZE * rule.size if rule.claim == AGAIN else 0
        judged = [
            one
            for one in self._models.of(window.catalog).observe(window)
            if one.name == rule.name and one.epoch < rule.num_epochs and one.size >= least
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([one.others(rule.claim) <= MAX_OTHERS for one in judged], np.bool_),
            lambda index: self._explain(judged[index]),
        )

    def _explain(self, one: _Verdict) -> Explanation:
        name = self._rule.name
        model = name.partition(".")[0]
        shown = f"{one.again} of {one.number} samples of `{name}`"
        if self._rule.claim == AGAIN:
            message = f"{shown} were given in an earlier epoch; in the reference all come again"
            fact = "samples do not come again"
            text = (
                f"the samples that {model} is given are not what they were in an earlier epoch: "
                "the data are changed in place each time they are read, or made anew"
            )
        else:
            message = f"{shown} were given in an earlier epoch; in the reference none comes again"
            fact = "samples come again"
            text = (
                f"the samples that {model} is given are the same in each epoch: random transforms "
                "or noise are switched off, drawn once, or have the same seed each time"
            )
        return Explanation(message=message, cause=Cause(fact=fact, subjects=(model,), text=text))


class _Shown:
    """What the reference shows of samples of one name."""

    def __init__(self) -> None:
        self.number = 0
        self.num_epochs = 0
        self.size = 0
        self.possible = {AGAIN, NEVER}

    def add(self, one: _Verdict) -> None:
        self.number += 1
        self.num_epochs = max(self.num_epochs, one.epoch + 1)
        self.size = max(self.size, one.size)
        self.possible = {claim for claim in self.possible if one.others(claim) <= MAX_USUAL}


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._models = PerRun(_Models)
        self._shown: dict[str, _Shown] = {}

    def observe(self, window: Window) -> None:
        for one in self._models.of(window.catalog).observe(window):
            self._shown.setdefault(one.name, _Shown()).add(one)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for name, shown in self._shown.items():
            if shown.number >= MIN_VERDICTS:
                for claim in shown.possible:
                    yield Hypothesis(
                        relation=RecurringSamplesRelation.name,
                        params=(
                            samples_named(name),
                            ConstantParam(value=(claim, shown.num_epochs, shown.size)),
                        ),
                    )
