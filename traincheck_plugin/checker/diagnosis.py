"""Diagnoses: violations with one cause, told as one."""

from __future__ import annotations

from dataclasses import dataclass

from traincheck_plugin.checker.violation import Violation
from traincheck_plugin.invariants.model import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Violations that share a cause.

    Attributes:
        message: what happened, in the words of the gravest violations.
        cause: the likely cause, a sentence; "" when nothing recorded explains it.
        severity: the gravest of its violations.
        source: the user's line of the first violation.
        violations: gravest first, then in order of time.
    """

    message: str
    cause: str
    severity: Severity
    source: str
    violations: tuple[Violation, ...]

    @property
    def first(self) -> Violation:
        return min(self.violations, key=lambda v: v.sequence)
