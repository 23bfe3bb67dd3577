"""What a check came to, over one or several runs: counts, and what is worth reporting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.checker.violation import Outcome, Status
from traincheck_plugin.invariants.model import SEVERITIES, Invariant, Severity

_GRAVITY: tuple[Status, ...] = ("not_triggered", "passed", "error", "failed")
"""In rising order: what an invariant comes to when several runs disagree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How many invariants came to what; each is counted once, however many runs it was checked on.

    Attributes:
        num_invariants: all of them: the sum of the others.
        num_failed: failed on some run, at any severity.
        num_errors: could not be checked on some run, and failed on none.
        num_passed: triggered on some run, and held wherever they were.
        num_not_triggered: met their precondition on no run.
    """

    num_invariants: int
    num_failed: int
    num_errors: int
    num_passed: int
    num_not_triggered: int


def total(results: Iterable[CheckResult]) -> Totals:
    """Count the invariants of *results*, which were checked with the same invariants."""
    final: dict[Invariant, Status] = {}
    for result in results:
        for outcome in result.outcomes:
            known = final.setdefault(outcome.invariant, outcome.status)
            final[outcome.invariant] = max(known, outcome.status, key=_GRAVITY.index)
    counts = Counter(final.values())
    return Totals(
        num_invariants=len(final),
        num_failed=counts["failed"],
        num_errors=counts["error"],
        num_passed=counts["passed"],
        num_not_triggered=counts["not_triggered"],
    )


def is_at_least(severity: Severity, minimum: Severity) -> bool:
    """Return whether *severity* is as grave as *minimum* or graver."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(minimum)


def has_violation(results: Iterable[CheckResult], minimum: Severity) -> bool:
    """Return whether an invariant of *minimum* severity or graver failed."""
    return any(
        outcome.violations and is_at_least(outcome.invariant.severity, minimum)
        for result in results
        for outcome in result.outcomes
    )


def outcomes_of(result: CheckResult, status: Status) -> list[Outcome]:
    """Return the outcomes with *status*: gravest first, then by when they failed."""

    def order(outcome: Outcome) -> tuple[int, int]:
        first = min((violation.sequence for violation in outcome.violations), default=0)
        return -SEVERITIES.index(outcome.invariant.severity), first

    return sorted((o for o in result.outcomes if o.status == status), key=order)


def by_gravity(diagnoses: Sequence[Diagnosis]) -> list[Diagnosis]:
    """Return the gravest first, and those of one severity in order of time."""
    return sorted(diagnoses, key=lambda d: (-SEVERITIES.index(d.severity), d.first.sequence))
