"""What the checker finds: violations, and the outcome of each invariant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from traincheck_plugin.invariants.model import Invariant, Severity
from traincheck_plugin.relations.base import Cause

__all__ = ["Cause", "Outcome", "Status", "Violation"]


@dataclass(slots=True, kw_only=True)
class Violation:
    """One invariant that did not hold, on one rank; later occurrences are counted.

    Attributes:
        message: expected, happened: ``Adam.step updated 0 of 2 parameters``.
        step, epoch, stage, rank: of the first occurrence.
        source: the user's line: ``train.py:152 in train``; "" when unknown.
        sequence: when, for ordering.
        time_ns: since the start of the recording.
        num_occurrences, last_step: over the run so far.
    """

    invariant: Invariant
    message: str
    cause: Cause | None
    step: int
    epoch: int
    stage: str
    rank: int
    source: str
    sequence: int
    time_ns: int
    num_occurrences: int = 1
    last_step: int = 0

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return self.invariant.severity


Status = Literal["failed", "passed", "not_triggered", "error"]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one invariant in one checked run.

    Attributes:
        num_triggered: examples that met the precondition.
        violations: at most one per rank.
        error: why it could not be checked, "" when it could.
    """

    invariant: Invariant
    num_triggered: int = 0
    violations: list[Violation] = field(default_factory=list)
    error: str = ""

    @property
    def status(self) -> Status:
        if self.error:
            return "error"
        if self.violations:
            return "failed"
        return "passed" if self.num_triggered else "not_triggered"
