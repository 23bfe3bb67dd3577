"""What a check came to, over one or several runs: counts, and what is worth reporting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.violation import Outcome, Status, Violation
from traincheck_plugin.invariants.model import SEVERITIES, Invariant, Severity

_GRAVITY: tuple[Status, ...] = ("not_triggered", "passed", "error", "failed")
"""In rising order: what an invariant comes to when several runs disagree."""


NO_STEP = "no optimizer step was seen: nothing about training could be judged"
"""What to say of a run without any, of which some rules may hold all the same."""


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

    def order(outcome: Outcome) -> tuple[int, int, int]:
        gravity = -SEVERITIES.index(outcome.invariant.severity)
        first = first_violation(outcome)
        return (gravity, first.step, first.sequence) if first else (gravity, 0, 0)

    return sorted((o for o in result.outcomes if o.status == status), key=order)


def first_violation(outcome: Outcome) -> Violation | None:
    """Return the violation that happened first, on whatever rank; None where nothing failed."""
    # Sequences of different ranks are not comparable, steps are.
    return min(outcome.violations, key=lambda v: (v.step, v.sequence), default=None)
