"""Preconditions: when an invariant must hold, as clauses over the context of an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from traincheck_plugin.vocabulary import Context

ClauseType = Literal["constant", "consistent", "unequal", "exist"]

PREFIX = "meta_vars."

GENERAL_VALUES = ("zero", "non_zero", "above_zero", "below_zero", "non_empty")
"""Values of a clause that stand for a set of values."""


def _matches(value: object, expected: object) -> bool:
    if expected == "zero" and not isinstance(value, str):
        return value == 0
    if expected in ("non_zero", "above_zero", "below_zero") and isinstance(value, int | float):
        return {"non_zero": value != 0, "above_zero": value > 0, "below_zero": value < 0}[
            str(expected)
        ]
    if expected == "non_empty":
        return bool(value)
    if isinstance(value, str):
        # Whatever the script put into META_VARS is recorded as text: None as "None".
        return value == str(expected)
    return bool(value == expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One condition on one property of the contexts of an example.

    Attributes:
        type: ``constant``: the property has one of *values*. ``consistent``: it is the same in all
            contexts of the example. ``unequal``: it differs between any two. ``exist``: it is
            known.
        prop_name: ``meta_vars.stage``: a property of `Context` or an annotation.
        prop_dtype: ``str``, ``int`` or ``bool``.
        values: literal values, or one of `GENERAL_VALUES`; an annotation, which is recorded as
            text, has a literal as value if it is the text of it.
    """

    type: ClauseType
    prop_name: str
    prop_dtype: str | None = None
    values: tuple[Any, ...] = ()

    def holds(self, contexts: Sequence[Context]) -> bool:
        """Return whether the clause is met; an unknown property meets nothing."""
        name = self.prop_name.removeprefix(PREFIX)
        found = [context.get(name) for context in contexts]
        if not found or any(value is None for value in found):
            return False
        if self.type == "constant":
            return all(any(_matches(v, e) for e in self.values) for v in found)
        if self.type == "consistent":
            return len(set(found)) == 1
        if self.type == "unequal":
            return len(set(found)) == len(found)
        return True

    def __str__(self) -> str:
        name = self.prop_name.removeprefix(PREFIX)
        if self.type == "constant":
            return f"{name} is {' or '.join(str(v).replace('_', ' ') for v in self.values)}"
        return {"consistent": f"{name} is the same", "unequal": f"{name} differs"}.get(
            self.type, f"{name} is known"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """A disjunction of conjunctions of clauses, or its negation.

    Attributes:
        alternatives: each a conjunction; no alternatives and not inverted means always.
        inverted: the precondition is met where the disjunction is not.
    """

    alternatives: tuple[tuple[Clause, ...], ...] = ()
    inverted: bool = False

    @property
    def properties(self) -> tuple[str, ...]:
        """The properties of contexts that it depends on."""
        names = (clause.prop_name for clauses in self.alternatives for clause in clauses)
        return tuple(dict.fromkeys(name.removeprefix(PREFIX) for name in names))

    def holds(self, *contexts: Context) -> bool:
        """Return whether an example with these contexts is one that the invariant speaks about."""
        if not self.alternatives:
            return True
        met = any(all(clause.holds(contexts) for clause in a) for a in self.alternatives)
        return met != self.inverted

    def __str__(self) -> str:
        if not self.alternatives:
            return "always"
        text = "; or ".join(" and ".join(map(str, a)) for a in self.alternatives)
        return f"{'except when' if self.inverted else 'when'} {text}"


ALWAYS = Precondition()
