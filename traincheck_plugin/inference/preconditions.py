"""Learns when a hypothesis holds, from the kinds of context of its good and bad examples.

A precondition is the smallest that tells them apart: one property, else a conjunction of two, else
a short disjunction of conjunctions. What the reference never showed is not claimed: the regime of
the relation (see `Relation.regime`) is part of every precondition.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from traincheck_plugin.inference.tally import PROPERTIES, Kind, Tally
from traincheck_plugin.invariants.precondition import PREFIX, Clause, Precondition

MAX_ALTERNATIVES = 3
MAX_CONJUNCTION = 2

SIGNS = {"zero", "above_zero", "below_zero"}


def learn(tally: Tally, regime: Sequence[str]) -> tuple[Precondition, list[Kind]] | None:
    """Return the precondition and the kinds of context that meet it.

    Args:
        tally: all examples. The negative ones that were kept aside do not take part in learning;
            a precondition that one of them meets is refuted.
        regime: properties that are restricted to what was seen in good examples.

    Returns:
        None where no short precondition tells good examples from bad ones, or one was refuted.
    """
    good, bad = [], []
    for kind, count in tally.counts.items():
        if count.negative > count.held_out_negative:
            if count.positive:
                return None
            bad.append(kind)
        elif count.positive:
            if count.held_out_negative:
                return None
            good.append(kind)
    if not good:
        return None
    alternatives = _separate(good, bad)
    if alternatives is None:
        return None
    named = {
        PROPERTIES.index(clause.prop_name.removeprefix(PREFIX))
        for a in alternatives
        for clause in a
    }
    limits = tuple(
        clause
        for name in regime
        if (index := PROPERTIES.index(name)) not in named
        and (clause := _clause(index, {kind[index] for kind in good})) is not None
    )
    precondition = Precondition(alternatives=tuple((*limits, *a) for a in alternatives))
    if not limits and alternatives == ((),):
        precondition = Precondition()
    refuted = [
        kind for kind, count in tally.counts.items() if count.negative and meets(kind, precondition)
    ]
    return None if refuted else (precondition, good)


def meets(kind: Kind, precondition: Precondition) -> bool:
    """Return whether contexts of a kind meet a precondition made of this module's clauses."""
    if not precondition.alternatives:
        return True
    values = dict(zip(PROPERTIES, kind, strict=True))
    return any(
        all(values[clause.prop_name.removeprefix(PREFIX)] in clause.values for clause in a)
        for a in precondition.alternatives
    )


def _separate(
    good: Collection[Kind], bad: Collection[Kind]
) -> tuple[tuple[Clause, ...], ...] | None:
    """Return the fewest alternatives that all *good* meet and no *bad* does."""
    if not bad:
        return ((),)
    for size in range(1, MAX_CONJUNCTION + 1):
        for indexes in combinations(range(len(PROPERTIES)), size):
            shown = {tuple(kind[i] for i in indexes) for kind in good}
            if any(tuple(kind[i] for i in indexes) in shown for kind in bad):
                continue
            if size == 1:
                clause = _clause(indexes[0], {value for (value,) in shown})
                if clause is not None:
                    return ((clause,),)
            elif len(shown) <= MAX_ALTERNATIVES:
                return tuple(
                    tuple(
                        clause
                        for i, value in zip(indexes, values, strict=True)
                        if (clause := _clause(i, {value})) is not None
                    )
                    for values in sorted(shown, key=str)
                )
    return None


def _clause(index: int, values: set[object]) -> Clause | None:
    """Return the clause that a property has one of the values; None where that says nothing."""
    if values >= SIGNS - {"below_zero"} and values <= SIGNS:
        return None
    if values == {True, False}:
        return None
    dtype = "int" if values <= SIGNS else "bool" if values <= {True, False} else "str"
    return Clause(
        type="constant",
        prop_name=PREFIX + PROPERTIES[index],
        prop_dtype=dtype,
        values=tuple(sorted(values, key=str)),
    )
