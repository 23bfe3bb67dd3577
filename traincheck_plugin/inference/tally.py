"""Counts of examples by the kind of context they happened in: all that inference keeps of a run.

Tallies of different runs and ranks add up, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from traincheck_plugin.events import Context, Window
from traincheck_plugin.relations.base import Examples

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

Kind = tuple[object, ...]
"""A context seen through `PROPERTIES`, numbers reduced to their sign: never values of one run."""

Occurrence = tuple[str, int]
"""One independent occurrence: a run and a window of it."""


def kind_of(context: Context) -> Kind:
    """Return the kind of a context."""
    return tuple(_general(context.get(name)) for name in PROPERTIES)


def _general(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return "zero" if value == 0 else "above_zero" if value > 0 else "below_zero"


@dataclass(slots=True)
class Count:
    """Examples of one kind of context.

    Attributes:
        positive, negative: number of examples that held, that did not.
        held_out_negative: those of the negative ones that were kept aside.
        occurrences, held_out: windows with positive examples, those that were kept aside.
    """

    positive: int = 0
    negative: int = 0
    held_out_negative: int = 0
    occurrences: set[Occurrence] = field(default_factory=set)
    held_out: set[Occurrence] = field(default_factory=set)


class Tally:
    """The examples of one hypothesis, counted."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[Kind, Count] = {}

    def add(
        self, run: str, window: Window, examples: Examples, kinds: list[Kind], *, held_out: bool
    ) -> None:
        """Count the examples of a window.

        Args:
            run: names the run and rank.
            window: that the examples are of.
            examples: of the hypothesis.
            kinds: kind of each context of the catalog of the window.
            held_out: whether the window is kept aside for confirmation.
        """
        codes, inverse = np.unique(examples.context, return_inverse=True)
        positive = np.bincount(inverse, weights=examples.holds, minlength=len(codes))
        total = np.bincount(inverse, minlength=len(codes))
        for code, good, number in zip(codes, positive, total, strict=True):
            count = self.counts.setdefault(kinds[int(code)], Count())
            bad = int(number - good)
            count.positive += int(good)
            count.negative += bad
            if held_out:
                count.held_out_negative += bad
            if good:
                (count.held_out if held_out else count.occurrences).add((run, window.index))

    def merge(self, other: Tally) -> None:
        """Add the counts of another part of the reference."""
        for kind, theirs in other.counts.items():
            ours = self.counts.setdefault(kind, Count())
            ours.positive += theirs.positive
            ours.negative += theirs.negative
            ours.held_out_negative += theirs.held_out_negative
            ours.occurrences |= theirs.occurrences
            ours.held_out |= theirs.held_out

    def total(self) -> tuple[int, int]:
        """Return the number of positive and of negative examples."""
        counts = self.counts.values()
        return sum(c.positive for c in counts), sum(c.negative for c in counts)

    def occurrences(self, kinds: Iterable[Kind]) -> tuple[set[Occurrence], set[Occurrence]]:
        """Return the occurrences of some kinds: those learned from and those kept aside."""
        chosen = [self.counts[kind] for kind in kinds]
        learned: set[Occurrence] = set().union(*(c.occurrences for c in chosen))
        held_out: set[Occurrence] = set().union(*(c.held_out for c in chosen))
        return learned, held_out - learned
