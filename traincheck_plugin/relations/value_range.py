"""ValueRangeRelation: the values of the training data are of the sign and size that they were."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Literal, NamedTuple

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
    no_explanation,
)
from traincheck_plugin.relations.moments import CHANCE
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.params import passing_plan, three
from traincheck_plugin.relations.passing import MIN_ELEMENTS, Deliveries, Delivery, Input, passing

MARGIN = 10
"""How many times as large, or as small, as in the reference values may be."""

MIN_SHARE = 0.2
"""Of negative values, from which half of it is no coincidence."""

MIN_OCCURRENCES = 10
"""Tensors of the reference that show how one is."""

MIN_IN_A_ROW = 3

SHOWN = ("value", "lowest", "highest", "negative")

_Kind = Literal["batch", "input"]
_KINDS: dict[str, _Kind] = {VAR_TYPES["batch"]: "batch", VAR_TYPES["input"]: "input"}


class Claim(NamedTuple):
    """What each tensor has, or none has.

    Attributes:
        quantifier: ``some``: each has such a value; ``none``: none has.
        what: ``negative``: a share of negative values above *bound*; ``large``: an absolute value
            above it; ``positive`` values.
        bound: 0 for signs.
    """

    quantifier: str
    what: str
    bound: float = 0.0

    def holds(self, tensor: _Tensor) -> bool:
        """Return whether a tensor fulfils it."""
        most = {
            "negative": tensor.negative,
            "positive": tensor.highest,
            "large": max(-tensor.lowest, tensor.highest),
        }
        return (most[self.what] > self.bound) == (self.quantifier == "some")


class ValueRangeRelation(Relation):
    """The values of the training data have the sign and the size that they had in the reference.

    ``forall tensors x of that name, in the batches that are delivered for a forward in training or
    among what this forward is given: claim(x)``, but for fewer than k in a row, where claim(x) is
    ``min(x) < 0``, ``max(x) > 0``, the opposite of either, that the share of values below 0 is
    above half of the least, or that ``max |x|`` is above a tenth of the smallest, or not above ten
    times the largest, that the reference had. k is the least number of tensors that would all fail
    by chance less often than `CHANCE`, after n that held. Judged are as many loaders, the first
    ones, as the reference had.

    Nothing is claimed of data that nobody knows to be fixed: of a loader that does not shuffle and
    was never started again, whose number of samples changes or is not known, or in whose place
    another one comes, as with the experience of an agent; of what is computed with gradients, has
    not as many rows and elements as a tensor of the batch, or is given to a second forward; nor of
    constants and of few elements.

    Catches images that are not normalised, or twice, and tokens that are not masked in the labels.
    Cannot see values that are wrong and within the usual range, as labels that are shuffled.
    """

    name = "ValueRangeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_rule(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        rule = _rule(params)
        each = "each has" if rule.claim.quantifier == "some" else "none has"
        return f"of the tensors `{rule.name}` for training {each} {_values(rule.claim)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _rule(params)
        return passing_plan("input", "batch", "loader", tensors=SHOWN)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _values(claim: Claim) -> str:
    if claim.what == "large":
        return f"an absolute value above {claim.bound:g}"
    if claim.bound:
        return f"more than {claim.bound:.0%} {claim.what} values"
    return f"{claim.what} values"


class _Rule(NamedTuple):
    """A hypothesis.

    Attributes:
        kind, name: of the tensors.
        claim: what is claimed of them.
        in_a_row: so many that fail are no coincidence.
        size: elements that such a tensor had in the reference, about.
        num_sources: how many there were: what comes besides may be of other data.
    """

    kind: _Kind
    name: str
    claim: Claim
    in_a_row: int
    size: int
    num_sources: int

    def params(self) -> tuple[Param, ...]:
        attribute = "lowest" if self.claim.what == "negative" else "highest"
        return (
            VarNameParam(var_name=self.name, var_type=VAR_TYPES[self.kind], attr_name=attribute),
            ConstantParam(value=tuple(self.claim)),
            ConstantParam(value=(self.in_a_row, self.size, self.num_sources)),
        )


def _rule(params: tuple[Param, ...]) -> _Rule:
    """Return what a hypothesis says.

    Raises:
        InvariantError: it is none of this relation.
    """
    relation = ValueRangeRelation.name
    who, claim, evidence = three(relation, params, VarNameParam, ConstantParam, ConstantParam)
    try:
        rule = _Rule(
            _KINDS[who.var_type], who.var_name, Claim(*claim.value), *map(int, evidence.value)
        )
        if rule.claim[:2] in _CAUSES:
            return rule
    except (KeyError, TypeError, ValueError):
        pass
    raise InvariantError(
        f"{relation} expects a batch or an input, a claim such as ['some', 'negative', 0], and "
        f"three whole numbers: how many may not fail in a row, their size, and that of sources; "
        f"got {params}"
    )


class _Tensor(NamedTuple):
    """One of the tensors that are judged.

    Attributes:
        kind, name: of it.
        source: tells it from others of the name: what it belongs to, and the loaders.
        row: of the forward that it is for.
        path: in the batch or among the arguments.
        size, lowest, highest, negative: number of elements, smallest and largest value, and share
            of those below zero.
    """

    kind: _Kind
    name: str
    source: tuple[str, ...]
    row: int
    path: str
    size: float
    lowest: float
    highest: float
    negative: float


class _Data:
    """Follows the batches for training, and what is made of them."""

    def __init__(self) -> None:
        self._deliveries = Deliveries()

    def fed(self, window: Window) -> Iterator[tuple[Input, list[Delivery]]]:
        """Yield the forwards of the next window that batches feed, with these."""
        if not window.observed:
            # Nobody knows what the batches that are left were for.
            self._deliveries = Deliveries()
            return
        for passed in passing(window):
            yield from self._deliveries.observe(passed)


def _tensors(
    window: Window, use: Input, batches: list[Delivery], kind: _Kind, wanted: str | None = None
) -> Iterator[_Tensor]:
    """Yield those that a batch holds, or that the forward is given; of one name, if wanted."""
    if kind == "batch":
        for batch in batches:
            for path, *numbers in zip(*batch.values, strict=True):
                name = _name(batch.loader, path)
                if wanted is None or wanted == name:
                    yield _Tensor(kind, name, (batch.loader,), use.row, path, *numbers)
        return
    found = [
        (name, path, numbers)
        for path, *numbers in zip(*use.values, strict=True)
        if (name := _name(use.root, path)) == wanted or wanted is None
    ]
    if not found:
        return
    # Noise, states of earlier steps and what another model computes are not data.
    sizes = {(shape[0], math.prod(shape)) for batch in batches for _, shape in batch.kinds}
    given = {
        item.path
        for item in window.catalog.signature(int(window.calls.inputs[use.row]))
        if item.shape and (item.shape[0], math.prod(item.shape)) in sizes and not item.requires_grad
    }
    source = (use.root, *sorted({batch.loader for batch in batches}))
    for name, path, numbers in found:
        if path in given:
            yield _Tensor(kind, name, source, use.row, path, *numbers)


@lru_cache(maxsize=1024)
def _name(owner: str, path: str) -> str:
    return f"{class_name(owner)}.{path}" if path else class_name(owner)


class _Monitor(Monitor):
    def __init__(self, rule: _Rule) -> None:
        self._rule = rule
        self._data = _Data()
        # By source, how many failed in a row, and their elements.
        self._failed: dict[tuple[str, ...], tuple[int, float]] = {}

    def observe(self, window: Window) -> Examples:
        judged: list[tuple[_Tensor, int, list[Delivery]]] = []
        for use, batches in self._data.fed(window):
            for tensor in _tensors(window, use, batches, self._rule.kind, self._rule.name):
                number = self._judge(tensor)
                if number is not None:
                    judged.append((tensor, number, batches))
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([tensor.row for tensor, *_ in judged], np.int64),
            np.array([not number for _, number, _ in judged], np.bool_),
            lambda index: _explain(self._rule, *judged[index]),
        )

    def _judge(self, tensor: _Tensor) -> int | None:
        """Return how many failed in a row, 0 for one that holds; None where that is no example."""
        claim, in_a_row, size = self._rule.claim, self._rule.in_a_row, self._rule.size
        known = self._failed.get(tensor.source)
        is_other = known is None and len(self._failed) == self._rule.num_sources
        if is_other or math.isnan(tensor.lowest):
            return None
        if claim.holds(tensor):
            self._failed[tensor.source] = 0, 0.0
            return 0
        # Among more elements there may be one that is rare, among fewer there may be none.
        if claim.quantifier == "none" and tensor.size > 2 * size:
            return None
        number, elements = known or (0, 0.0)
        number, elements = self._failed[tensor.source] = number + 1, elements + tensor.size
        if number < in_a_row or (claim.quantifier == "some" and elements < in_a_row * size):
            return None
        return number


_CAUSES = {
    ("some", "negative"): "what was standardised, or masked as labels are with -100, is not",
    ("none", "negative"): "it is standardised or masked, and was not",
    ("some", "positive"): "it is all zeros, masked as a whole, or of another sign",
    ("none", "positive"): "it is of another sign, or what was masked is not",
    ("some", "large"): "it is normalised twice, or divided by a number that is too large",
    ("none", "large"): "it is not normalised, or not any more, or an offset was left out",
}


def _explain(rule: _Rule, tensor: _Tensor, number: int, batches: list[Delivery]) -> Explanation:
    if not number:
        return no_explanation(number)
    claim, owner = rule.claim, class_name(tensor.source[0])
    who = "the batches" if rule.kind == "batch" else f"the inputs of {owner}"
    what = f"`{tensor.path}` of {who}" if tensor.path else who
    is_some = claim.quantifier == "some"
    if claim.what == "large":
        seen = max(-tensor.lowest, tensor.highest)
        than = "a tenth of the smallest" if is_some else "ten times the largest"
        message = (
            f"the largest absolute value of {what} was {seen:.3g}, and in the last {number} "
            f"batches {'never' if is_some else 'always'} above {claim.bound:g}, which is about "
            f"{than} in the reference"
        )
    elif claim.bound:
        message = (
            f"of {what} {tensor.negative:.0%} was negative, and in the last {number} batches no "
            f"more than {claim.bound:.0%}; in the reference at least twice as much"
        )
    else:
        held = f"no {claim.what} value" if is_some else f"{claim.what} values"
        message = (
            f"{what} held {held} in the last {number} batches; in the reference "
            f"{'each' if is_some else 'none'} did"
        )
    verb = "delivers" if rule.kind == "batch" else "is given"
    return Explanation(
        message=message,
        cause=Cause(
            fact="values of the data",
            subjects=(_origin(tensor, batches),),
            text=f"{owner} {verb} "
            + (f"`{tensor.path}` " if tensor.path else "data ")
            + f"with values unlike those of a healthy run: {_CAUSES[claim[:2]]}",
        ),
    )


def _origin(tensor: _Tensor, batches: list[Delivery]) -> str:
    """Return the name of the tensor of a batch that is the same, or else its own."""
    found = tensor[-4:]
    for batch in batches:
        for path, *numbers in zip(*batch.values, strict=True):
            if tuple(numbers) == found:
                return _name(batch.loader, path)
    return tensor.name


@dataclass(slots=True)
class _Seen:
    """What the reference shows of the tensors of one source."""

    number: int = 0
    num_negative: int = 0
    num_positive: int = 0
    least_negative: float = 1.0
    smallest: float = math.inf
    largest: float = 0.0
    is_constant: bool = True
    sizes: Counter[int] = field(default_factory=Counter)

    def add(self, tensor: _Tensor) -> None:
        peak = max(-tensor.lowest, tensor.highest)
        self.number += 1
        self.num_negative += tensor.lowest < 0
        self.num_positive += tensor.highest > 0
        self.least_negative = min(self.least_negative, tensor.negative)
        self.smallest, self.largest = min(self.smallest, peak), max(self.largest, peak)
        self.is_constant &= tensor.lowest == tensor.highest
        self.sizes[int(tensor.size).bit_length()] += 1


class _Loaders:
    """Tells which loaders deliver the same data all the time, in random order or all of it."""

    def __init__(self) -> None:
        self._first: dict[str, dict[str, float]] = {}
        self._is_told: set[str] = set()
        self._changes: set[str] = set()

    def add(self, batch: Delivery) -> None:
        facts = batch.facts
        first = self._first.setdefault(batch.loader, facts)
        if facts["samples"] != first["samples"]:
            # One that is not known differs from itself.
            self._changes.add(batch.loader)
        if facts["shuffles"] == 1 or facts["start"] > first["start"]:
            self._is_told.add(batch.loader)

    def is_fixed(self, loader: str) -> bool:
        return loader in self._is_told and loader not in self._changes


class _Proposer(Proposer):
    """Proposes what held of each tensor of a name."""

    def __init__(self) -> None:
        self._data = _Data()
        self._seen: dict[tuple[_Kind, str], dict[tuple[str, ...], _Seen]] = {}
        # The source that a name had last, and those that came back after another one.
        self._last: dict[tuple[_Kind, str], tuple[str, ...]] = {}
        self._returned: dict[tuple[_Kind, str], set[tuple[str, ...]]] = {}
        self._loaders = _Loaders()

    def observe(self, window: Window) -> None:
        for use, batches in self._data.fed(window):
            for batch in batches:
                self._loaders.add(batch)
            for kind in _KINDS.values():
                for tensor in _tensors(window, use, batches, kind):
                    if not math.isnan(tensor.lowest):
                        self._add(tensor)

    def _add(self, tensor: _Tensor) -> None:
        key, source = (tensor.kind, tensor.name), tensor.source
        sources = self._seen.setdefault(key, {})
        if source in sources and self._last[key] != source:
            self._returned.setdefault(key, set()).add(source)
        self._last[key] = source
        sources.setdefault(source, _Seen()).add(tensor)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for key, sources in self._seen.items():
            kind, name = key
            loaders = {
                loader
                for source in sources
                for loader in (source if kind == "batch" else source[1:])
            }
            if not all(map(self._loaders.is_fixed, loaders)):
                continue
            if len(sources) > 1 and sources.keys() != self._returned.get(key):
                # What comes in the place of a loader may be of other data.
                continue
            found = list(sources.values())
            number = min(seen.number for seen in found)
            size = _typical(found)
            if (
                number < MIN_OCCURRENCES
                or size < MIN_ELEMENTS
                or all(seen.is_constant for seen in found)
            ):
                continue
            for claim in _claims(found):
                rule = _Rule(kind, name, claim, _in_a_row(number), size, len(sources))
                yield Hypothesis(relation=ValueRangeRelation.name, params=rule.params())


def _claims(found: list[_Seen]) -> Iterator[Claim]:
    """Yield what all of the tensors have, or none."""
    number = sum(seen.number for seen in found)
    negative = sum(seen.num_negative for seen in found)
    positive = sum(seen.num_positive for seen in found)
    for what, having, other in (("negative", negative, positive), ("positive", positive, negative)):
        if having == 0:
            yield Claim("none", what)
        elif having == number and other:
            # Without the other sign it is the same as that there are large values.
            yield Claim("some", what, _least(found) if what == "negative" else 0.0)
    smallest, largest = min(seen.smallest for seen in found), max(seen.largest for seen in found)
    if smallest > _TINY:
        yield Claim("some", "large", _rounded(smallest / MARGIN, math.floor))
    if largest < 1 / _TINY:
        yield Claim("none", "large", _rounded(largest * MARGIN, math.ceil))


def _least(found: list[_Seen]) -> float:
    """Return half of the least share of negative values; 0 where that is not much."""
    least = min(seen.least_negative for seen in found)
    return _rounded(least / 2, math.floor) if least >= MIN_SHARE else 0.0


_TINY = 1e-300
"""Near the ends of what float64 holds nothing is smaller, or larger, by much."""


def _rounded(value: float, to_whole: Callable[[float], int]) -> float:
    """Return a number with one digit, so that runs that are nearly alike claim the same."""
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{to_whole(round(value / unit, 9)) * unit:.0e}")


def _typical(found: list[_Seen]) -> int:
    """Return the median number of elements, as a power of two that is not above it."""
    lengths = sorted(sum((seen.sizes for seen in found), Counter()).elements())
    return 1 << max(0, lengths[(len(lengths) - 1) // 2] - 1)


def _in_a_row(number: int) -> int:
    """Return how many may not fail in a row, after *number* that held.

    By the rule of succession k more fail with a chance of ``1 / C(number + k + 1, k)``.
    """
    return next(k for k in count(MIN_IN_A_ROW) if CHANCE * math.comb(number + k + 1, k) > 1)
