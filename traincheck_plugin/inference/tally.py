"""Counts of examples by the kind of context they happened in: all that inference keeps of a run.

Tallies of different runs and ranks add up, in any order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

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

    def add(
        self, run: str, window: Window, examples: Examples, kinds: list[Kind], *, held_out: bool
    ) -> None:
        """Count the examples of a window.

        Args:
            run: names the run.
            window: that the examples are of; each is added once.
            examples: of the hypothesis.
            kinds: kind of each context of the catalog of the window.
            held_out: whether the window is kept aside for confirmation.
        """
        shown = set()
        # A window has few examples: arrays would take longer.
        pairs = Counter(zip(examples.context.tolist(), examples.holds.tolist(), strict=True))
        for (code, good), number in pairs.items():
            kind = kinds[code]
            count = self.counts.get(kind)
            if count is None:
                count = self.counts[kind] = Count()
            if good:
                count.positive += number
                shown.add(kind)
            else:
                count.negative += number
                count.refuted_by.add(run)
                count.held_out_negative += number if held_out else 0
        if shown:
            self.windows[run, held_out, frozenset(shown)] += 1

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
