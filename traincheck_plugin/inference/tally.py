"""Counts of examples by the kind of context they happened in: all that inference keeps of a run.

Tallies of different runs and ranks add up, in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traincheck_plugin.catalog import Contexts
from traincheck_plugin.relations.base import Examples
from traincheck_plugin.vocabulary import CONTEXT_NUMBERS, Array, Bool, Context, Int32, Int64

PROPERTIES = (
    "steps_since_clear",
    "micro_step",
    "stage",
    "grad_enabled",
    "autocast",
    "step",
)
"""The properties of a context that a precondition may name; where several tell good examples from
bad ones, the first is taken: it says most about the reason."""

MAX_BITS = 62
"""Of an integer of NumPy; a set of more kinds is one of Python."""

Kind = tuple[object, ...]
"""A context seen through `PROPERTIES`, numbers reduced to their sign: never values of one run."""

Stretch = tuple[str, bool, frozenset[Kind]]
"""Windows of a run that are alike: the run, whether they were kept aside, and the kinds of context
that had positive examples in them."""


def kind_of(context: Context) -> Kind:
    """Return the kind of a context."""
    return tuple(_general(context.get(name)) for name in PROPERTIES)


def _general(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return "zero" if value == 0 else "above_zero" if value > 0 else "below_zero"


class Kinds:
    """The kinds of the contexts of one catalog, which grows.

    Attributes:
        known: those there are; their indexes are numbers.
    """

    def __init__(self, contexts: Contexts) -> None:
        self.known: list[Kind] = []
        self._contexts = contexts
        self._numbers: dict[Kind, int] = {}
        self._by_context = np.empty(0, np.int64)

    def of(self, codes: Int32) -> Int64:
        """Return the number of the kind of each of these contexts."""
        start, stop = len(self._by_context), len(self._contexts)
        if start < stop:
            self._by_context = np.append(self._by_context, self._new(start, stop))
        numbers: Int64 = self._by_context[codes]
        return numbers

    def _new(self, start: int, stop: int) -> Int64:
        # Many contexts are of few kinds: only the first of each is looked at.
        key = np.zeros(stop - start, np.int64)
        for name in PROPERTIES:
            column = self._contexts.column(name)[start:stop]
            column = np.sign(column) + 1 if name in CONTEXT_NUMBERS else column
            key = key * (int(column.max()) + 1) + column
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        numbers = []
        for code in (first + start).tolist():
            kind = kind_of(self._contexts[code])
            number = self._numbers.setdefault(kind, len(self._numbers))
            if number == len(self.known):
                self.known.append(kind)
            numbers.append(number)
        return np.array(numbers, np.int64)[which]


@dataclass(slots=True)
class Count:
    """Examples of one kind of context.

    Attributes:
        positive, negative: number of examples that held, that did not.
        held_out_negative: those of the negative ones that were kept aside.
        refuted_by: the runs with negative ones.
    """

    positive: int = 0
    negative: int = 0
    held_out_negative: int = 0
    refuted_by: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrences:
    """How often something held independently: windows, not examples.

    Attributes:
        number: all of them.
        held_out: those in the part of the reference that was kept aside.
        runs: names of the runs they were seen in.
    """

    number: int
    held_out: int
    runs: frozenset[str]


class Tally:
    """The examples of one hypothesis, counted."""

    __slots__ = ("counts", "windows")

    def __init__(self) -> None:
        self.counts: dict[Kind, Count] = {}
        self.windows: Counter[Stretch] = Counter()

    def add(self, run: str, examples: Examples, kinds: Kinds, held_out: Bool) -> None:
        """Count the examples of a window, or stretch.

        Args:
            run: names the run.
            examples: of the hypothesis.
            kinds: of the contexts of the catalog of the window.
            held_out: of each of the windows joined, whether it is kept aside for confirmation.
        """
        holds, numbers = examples.holds, kinds.of(examples.context)
        position = examples.position
        if position is None:
            position = np.zeros(len(holds), np.int64)
        present = np.flatnonzero(np.bincount(numbers)).tolist()
        # Of each window a number with a bit for each kind that had positive examples in it, and
        # the lowest for whether it is kept aside.
        sets: Array = held_out.astype(np.int64 if len(present) < MAX_BITS else np.object_)
        for index, number in enumerate(present, start=1):
            count = self.counts.get(kinds.known[number])
            if count is None:
                count = self.counts[kinds.known[number]] = Count()
            of_kind = slice(None) if len(present) == 1 else np.flatnonzero(numbers == number)
            good, where = holds[of_kind], position[of_kind]
            num_good = int(np.count_nonzero(good))
            count.positive += num_good
            if num_good < len(good):
                count.negative += len(good) - num_good
                count.refuted_by.add(run)
                count.held_out_negative += int(np.count_nonzero(held_out[where[~good]]))
                where = where[good]
            shown = np.zeros(len(sets), np.bool_)
            shown[where] = True
            sets[shown] += 1 << index
        found, numbers_of = np.unique(sets, return_counts=True)
        for bits, how_many in zip(found.tolist(), numbers_of.tolist(), strict=True):
            alike = frozenset(
                kinds.known[number] for index, number in enumerate(present, 1) if bits >> index & 1
            )
            if alike:
                self.windows[run, bool(bits & 1), alike] += how_many

    def merge(self, other: Tally) -> None:
        """Add the counts of another part of the reference."""
        for kind, theirs in other.counts.items():
            ours = self.counts.setdefault(kind, Count())
            ours.positive += theirs.positive
            ours.negative += theirs.negative
            ours.held_out_negative += theirs.held_out_negative
            ours.refuted_by |= theirs.refuted_by
        self.windows.update(other.windows)

    def total(self) -> tuple[int, int]:
        """Return the number of positive and of negative examples."""
        counts = self.counts.values()
        return sum(c.positive for c in counts), sum(c.negative for c in counts)

    def occurrences(self, kinds: Collection[Kind]) -> Occurrences:
        """Return how often examples of some kinds held."""
        chosen = [
            (run, held_out, number)
            for (run, held_out, shown), number in self.windows.items()
            if not shown.isdisjoint(kinds)
        ]
        return Occurrences(
            number=sum(number for _, _, number in chosen),
            held_out=sum(number for _, held_out, number in chosen if held_out),
            runs=frozenset(run for run, _, _ in chosen),
        )

    def refuted_by(self) -> frozenset[str]:
        """Return the runs in which some example did not hold."""
        return frozenset().union(*(count.refuted_by for count in self.counts.values()))

    def to_json(self) -> dict[str, Any]:
        """Return the tally as an object that JSON can hold, the same for equal tallies."""
        order = sorted(self.counts, key=repr)
        return {
            "kinds": [
                [*kind, c.positive, c.negative, c.held_out_negative, sorted(c.refuted_by)]
                for kind, c in ((kind, self.counts[kind]) for kind in order)
            ],
            "windows": sorted(
                [run, held_out, sorted(map(order.index, shown)), number]
                for (run, held_out, shown), number in self.windows.items()
            ),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        """Return the tally of an object made by `to_json`."""
        tally = cls()
        for *kind, positive, negative, held_out_negative, refuted_by in data["kinds"]:
            tally.counts[tuple(kind)] = Count(
                positive, negative, held_out_negative, set(refuted_by)
            )
        order: Sequence[Kind] = list(tally.counts)
        for run, held_out, shown, number in data["windows"]:
            tally.windows[run, held_out, frozenset(order[index] for index in shown)] = number
        return tally
