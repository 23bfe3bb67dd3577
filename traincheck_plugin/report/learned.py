"""What inference found, in a few lines: how many rules of which kind, and the strongest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from traincheck_plugin.invariants.model import SEVERITIES, Invariant

NUM_SHOWN = 10


def summary(invariants: Sequence[Invariant]) -> Iterator[str]:
    """Yield the lines of a table by relation and severity, and of the strongest invariants."""
    counts = Counter((i.relation, i.severity) for i in invariants)
    relations = sorted({invariant.relation for invariant in invariants})
    width = max(map(len, relations), default=0)
    gravest_first = SEVERITIES[::-1]
    for relation in relations:
        numbers = (counts[relation, severity] for severity in gravest_first)
        cells = "".join(
            f"  {number or '':>4} {severity if number else '':<8}"
            for number, severity in zip(numbers, gravest_first, strict=True)
        )
        yield f"  {relation:<{width}}{cells}".rstrip()
    strongest = sorted(invariants, key=_strength)[:NUM_SHOWN]
    if strongest:
        yield f"The strongest {len(strongest)}:"
    for invariant in strongest:
        evidence = invariant.evidence
        yield (
            f"  {invariant.severity:<8}  {invariant.text_description} "
            f"({evidence.num_occurrences:,} times, never broken)"
        )


def _strength(invariant: Invariant) -> tuple[int, int, str]:
    return (
        -SEVERITIES.index(invariant.severity),
        -invariant.evidence.num_occurrences,
        invariant.text_description,
    )
