"""SampleTargetsRelation: a sample has the target that it had."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
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
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import given
from traincheck_plugin.vocabulary import Array

MAX_KNOWN = 1024
"""Samples of which the target is kept: those with the smallest keys, which are the same in each
run."""

MIN_REPEATED = 32
"""So many samples must come again in the reference, in another step, with the same target."""

MAX_AMBIGUOUS = 0.02
"""Of those that come again, the share that may have another target: duplicates in the data."""

NUM_RECENT = 24
"""Known samples that are judged together: those that were given last."""

MIN_RECENT = 12
MAX_OTHERS = 2 / 3
"""Share of these that may have another target, as labels with noise have with another seed."""

MIN_FAMILIAR = 0.5
"""Share of samples of whole numbers, with keys as small as those that are known, that are known:
with less they are other data, of which some are known by chance, as tokens that were numbered
anew."""

REAL, WHOLE = "real", "whole"
"""What numbers samples have."""

_SAMPLE = VAR_TYPES["sample"]
_WIDTH = np.dtype("<u4")
_MAX_WATCHED = 1 << 15
_MAX_FAMILIAR = 256
_MAX_SHOWN = 1000

Targets = Mapping[int, int]
"""The target of each sample, both as numbers of 32 bits that tell them from others."""


class SampleTargetsRelation(Relation):
    """A sample has the target that it had in the reference.

    ``forall backward passes b, samples s that an input of that name has in b and in the reference:
    target(b, s) == target(reference, s)``. Judged are the last `NUM_RECENT` known samples, and
    they fail together, where more than `MAX_OTHERS` of them have another target. A target is a
    whole number, or several. Of tokens and the like nothing is said where most are not known.
    Proposed where samples came again in the reference, and had the same target.

    Catches labels that were shuffled, shifted or sorted apart from the data, and masks that were
    not turned with their images. Cannot see targets that are real numbers, samples that are never
    twice the same, as images that are cropped at random, and data that the reference had not.
    """

    name = "SampleTargetsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_rule(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        rule = _rule(params)
        return (
            f"samples of `{rule.name}` have the same target in {rule.operation} each time: "
            f"{len(rule.known)} are known"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _rule(params)
        return Plan(
            functions=frozenset(),
            attributes={"backward": frozenset({("sample", "data"), ("sample", "value")})},
        )

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Rule(NamedTuple):
    """A hypothesis.

    Attributes:
        name: of an input.
        operation: that takes the target.
        known: targets of the reference.
        is_whole: whether the samples are of whole numbers.
    """

    name: str
    operation: str
    known: Targets
    is_whole: bool


def _rule(params: tuple[Param, ...]) -> _Rule:
    """Return the hypothesis with these parameters.

    Raises:
        InvariantError: they are none of this relation.
    """
    relation = SampleTargetsRelation.name
    who, claim = pair(relation, params, VarNameParam, ConstantParam)
    match claim.value:
        case (str(operation), str(text), "real" | "whole" as of) if who.var_type == _SAMPLE:
            return _Rule(who.var_name, operation, _decode(text), of == WHOLE)
    raise InvariantError(
        f"{relation} expects a sample, an operation, targets of samples, and {REAL!r} or "
        f"{WHOLE!r}; got {params}"
    )


def _encode(known: Targets) -> str:
    """Return what is known as text: keys and targets in turn, as little-endian words in base64."""
    return base64.b64encode(np.array(list(known.items()), _WIDTH).tobytes()).decode()


@lru_cache(maxsize=64)
def _decode(text: str) -> Targets:
    try:
        words = np.frombuffer(base64.b64decode(text, validate=True), _WIDTH).reshape(-1, 2)
    except (binascii.Error, ValueError) as error:
        raise InvariantError(
            f"{SampleTargetsRelation.name} expects targets of samples in base64, as keys and "
            f"targets of 32 bits in turn; {error}"
        ) from error
    return dict(zip(*words.T.tolist(), strict=True))


class _Batch(NamedTuple):
    """The samples of one input at a backward.

    Attributes:
        row: of the backward.
        step: the training step.
        name: of the input: ``Net.0``, with the class of the model.
        operation: that takes the target.
        targets: of the samples.
    """

    row: int
    step: int
    name: str
    operation: str
    targets: Targets


def _batches(window: Window) -> list[_Batch]:
    found: list[_Batch] | None = window.cache.get(_batches)
    if found is None:
        found = window.cache[_batches] = list(_read(window))
    return found


def _read(window: Window) -> Iterator[_Batch]:
    steps = window.catalog.contexts.column("step")[window.calls.context]
    for row, frame in frames_of(window, "sample"):
        if "value" not in frame.columns:
            continue
        keys, values = frame.columns["data"], frame.columns["value"]
        is_told = ~np.isnan(values)
        if is_told.any():
            variable = window.catalog.variables[int(frame.variables[0])]
            model = class_name(variable.owner)
            name = f"{model}.{variable.name}" if variable.name else model
            # The keys have 52 bits.
            short = (keys[is_told] >> np.uint64(20)).astype(np.uint32)
            targets = dict(zip(short.tolist(), _folded(values[is_told]).tolist(), strict=True))
            yield _Batch(row, int(steps[row]), name, variable.type, targets)


def _folded(values: Array) -> Array:
    """Return whole numbers as such of 32 bits: small ones as they are."""
    numbers = values.astype(np.int64)
    return (numbers ^ (numbers >> 32)).astype(np.uint32)


class _Recent:
    """The samples that were given last.

    Attributes:
        pairs: the targets of those that are known: in the reference, and now.
        familiar: of those that would be known if they had been in the reference, whether they are.
    """

    def __init__(self) -> None:
        self.pairs: deque[tuple[int, int]] = deque(maxlen=NUM_RECENT)
        self.familiar: deque[bool] = deque(maxlen=_MAX_FAMILIAR)

    def are_familiar(self) -> bool:
        """Return whether these are samples of the reference."""
        return sum(self.familiar) >= MIN_FAMILIAR * len(self.familiar)


class _Monitor(Monitor):
    """Judges the samples of one input."""

    def __init__(self, rule: _Rule) -> None:
        self._rule = rule
        self._known = rule.known
        self._largest = max(rule.known, default=0)
        self._recent = PerRun(_Recent)

    def observe(self, window: Window) -> Examples:
        rows, holds, shown = [], [], []
        for batch in _batches(window):
            if (batch.name, batch.operation) != (self._rule.name, self._rule.operation):
                continue
            again = [
                (self._known[key], now) for key, now in batch.targets.items() if key in self._known
            ]
            recent = self._recent.of(window.catalog)
            recent.pairs.extend(again)
            recent.familiar.extend(
                key in self._known for key in batch.targets if key <= self._largest
            )
            if self._rule.is_whole and not recent.are_familiar():
                continue
            if again and len(recent.pairs) >= MIN_RECENT:
                others = [(then, now) for then, now in recent.pairs if then != now]
                rows.append(batch.row)
                holds.append(len(others) <= MAX_OTHERS * len(recent.pairs))
                shown.append((others, len(recent.pairs)))
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda index: self._explain(*shown[index]),
        )

    def _explain(self, others: list[tuple[int, int]], number: int) -> Explanation:
        then, now = others[0]
        name, operation, *_ = self._rule
        example = f", as {now} in place of {then}" if max(then, now) < _MAX_SHOWN else ""
        return Explanation(
            message=(
                f"{len(others)} of {number} samples of `{name}` have other targets in "
                f"{operation} than in the reference{example}"
            ),
            cause=Cause(
                fact="targets of other samples",
                subjects=(name,),
                text=f"targets do not belong to their samples (`{name}`): they were "
                "shuffled, sorted, shifted or masked apart from them, or other targets were read",
            ),
        )


class _Seen:
    """The samples of one input in the reference."""

    def __init__(self) -> None:
        self._targets: dict[int, tuple[int, int]] = {}
        self._again: dict[int, bool] = {}
        self._limit = 1 << 32

    def add(self, batch: _Batch) -> None:
        """Take note of the targets of a batch: of samples that come again, whether they are new."""
        for key, target in batch.targets.items():
            if key >= self._limit:
                continue
            known, step = self._targets.setdefault(key, (target, batch.step))
            if target != known:
                self._again[key] = False
            elif step != batch.step:
                self._again.setdefault(key, True)
        if len(self._targets) > _MAX_WATCHED:
            kept = sorted(self._targets)[: _MAX_WATCHED // 2]
            self._limit = kept[-1] + 1
            self._targets = {key: self._targets[key] for key in kept}
            self._again = {key: same for key, same in self._again.items() if key < self._limit}

    def known(self) -> Targets:
        """Return the targets of some samples; none where they are not always the same."""
        again = sum(self._again.values())
        is_sure = again >= MIN_REPEATED and again >= (1 - MAX_AMBIGUOUS) * len(self._again)
        told = {self._targets[key][0] for key, same in self._again.items() if same}
        if not is_sure or len(told) == 1:
            return {}
        clear = (key for key in sorted(self._targets) if self._again.get(key, True))
        return {key: self._targets[key][0] for key, _ in zip(clear, range(MAX_KNOWN), strict=False)}


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._real: set[str] = set()

    def observe(self, window: Window) -> None:
        self._real.update(one.name for one in given(window) if one.is_real)
        for batch in _batches(window):
            self._seen.setdefault((batch.name, batch.operation), _Seen()).add(batch)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for (name, operation), seen in self._seen.items():
            known = seen.known()
            if known:
                yield Hypothesis(
                    relation=SampleTargetsRelation.name,
                    params=(
                        VarNameParam(var_name=name, var_type=_SAMPLE, attr_name="value"),
                        ConstantParam(
                            value=(operation, _encode(known), REAL if name in self._real else WHOLE)
                        ),
                    ),
                )
