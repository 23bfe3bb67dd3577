"""Diagnoses: violations with one cause, told as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.violation import Violation
from traincheck_plugin.invariants.model import SEVERITIES, Severity

MAX_MESSAGES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Violations that share a cause.

    Attributes:
        message: what happened, in the words of the gravest violations.
        cause: the likely cause, a sentence; "" when nothing recorded explains it.
        severity: the gravest of its violations.
        source: the user's line of the gravest violation.
        violations: gravest first, then in order of time.
    """

    message: str
    cause: str
    severity: Severity
    source: str
    violations: tuple[Violation, ...]

    @property
    def first(self) -> Violation:
        """The violation that happened first."""
        return min(self.violations, key=lambda v: (v.step, v.sequence))


def diagnose(violations: Iterable[Violation]) -> tuple[Diagnosis, ...]:
    """Return the diagnoses of some violations, gravest first, then in order of time.

    Of one step those come first that something recorded explains. Violations belong together when
    the same fact about overlapping sets of variables explains them, on whatever rank they happened,
    or when one is about variables that the cause of the other leaves out; without a recorded cause,
    when they say the same.
    """
    groups: list[list[Violation]] = []
    for violation in sorted(violations, key=_order):
        joined = [group for group in groups if any(_related(violation, v) for v in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([v for group in joined for v in group] + [violation])
    return tuple(sorted(map(_diagnosis, groups), key=_place))


class News:
    """Tells which diagnoses of a run that goes on were not told before."""

    def __init__(self) -> None:
        self._told: set[int] = set()

    def of(self, violations: Iterable[Violation]) -> list[Diagnosis]:
        """Return the diagnoses of *violations*, all there are so far, that hold only new ones."""
        found = list(violations)
        if all(id(violation) in self._told for violation in found):
            return []
        new = []
        for diagnosis in diagnose(found):
            numbers = {id(violation) for violation in diagnosis.violations}
            if not self._told & numbers:
                new.append(diagnosis)
            self._told |= numbers
        return new


def _order(violation: Violation) -> tuple[int, int, int, int, str]:
    gravity = -SEVERITIES.index(violation.invariant.severity)
    return gravity, violation.step, violation.sequence, violation.rank, violation.message


def _place(diagnosis: Diagnosis) -> tuple[int, int, bool, int, int, str]:
    gravity, step, sequence, rank, message = _order(diagnosis.violations[0])
    return gravity, step, not diagnosis.cause, sequence, rank, message


def _related(first: Violation, second: Violation) -> bool:
    if first.cause is None or second.cause is None:
        return first.cause is second.cause and first.message == second.message
    one, other = first.cause, second.cause
    if one.fact == other.fact and set(one.subjects) & set(other.subjects):
        return True
    return set(one.subjects) <= set(other.left_out) or set(other.subjects) <= set(one.left_out)


def _diagnosis(group: Sequence[Violation]) -> Diagnosis:
    ordered = sorted(group, key=_order)
    gravest = ordered[0]
    grave = [v for v in ordered if v.severity == gravest.severity]
    messages = dict.fromkeys(v.message for v in grave)
    # The longest cause of the gravest violations tells most: it includes who was left out.
    causes = [v.cause.text for v in grave if v.cause is not None]
    causes = causes or [v.cause.text for v in ordered if v.cause is not None]
    return Diagnosis(
        message="; ".join(list(messages)[:MAX_MESSAGES]),
        cause=max(causes, key=len, default=""),
        severity=gravest.invariant.severity,
        source=gravest.source,
        violations=tuple(ordered),
    )
