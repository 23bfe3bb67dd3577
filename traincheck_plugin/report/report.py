"""The report of a run that was checked while it went on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.checker.violation import Violation
from traincheck_plugin.invariants.model import SEVERITIES, Invariant, Severity
from traincheck_plugin.report.html import render_html
from traincheck_plugin.report.results import create_results_directory, write_results
from traincheck_plugin.report.summary import NO_STEP, Totals, is_at_least, total
from traincheck_plugin.report.text import count_of, printable

REPORTED: Severity = "warning"
"""The least severity that a user is shown without asking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What checking one run came to, so far or at its end.

    Attributes:
        result: outcomes, diagnoses and problems.
        invariants: what was checked.
        num_steps: completed training steps, whether they were watched or not.
        overhead: what observing and checking took, as a share of what the training itself did.
    """

    result: CheckResult
    invariants: tuple[Invariant, ...] = ()
    num_steps: int = 0
    overhead: float = 0.0

    @property
    def violations(self) -> tuple[Violation, ...]:
        """What did not hold, `warning` and above: gravest first, one per invariant and rank."""
        return tuple(
            violation
            for diagnosis in self.diagnoses
            for violation in diagnosis.violations
            if is_at_least(violation.severity, REPORTED)
        )

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """Violations with one cause as one, `warning` and above, gravest first."""
        return tuple(d for d in self.result.diagnoses if is_at_least(d.severity, REPORTED))

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be observed or checked, a sentence each."""
        return self.result.problems

    @property
    def totals(self) -> Totals:
        """How many invariants failed, held, were not triggered or could not be checked."""
        return total([self.result])

    def summary(self) -> str:
        """Return the closing lines: what was checked, what of it failed, what is not known."""
        totals = self.totals
        lines = [
            f"{self._verdict(totals)}; "
            f"{count_of(totals.num_invariants, 'invariant')}: {totals.num_failed} failed, "
            f"{totals.num_passed} held, {totals.num_not_triggered} never triggered"
            + (f", {totals.num_errors} could not be checked" if totals.num_errors else "")
            + f"; overhead {self.overhead:.1%}"
        ]
        errors = [outcome for outcome in self.result.outcomes if outcome.error]
        lines += [f"  {o.invariant.relation}: {printable(o.error)}" for o in errors[:3]]
        lines += [f"  note: {printable(problem)}" for problem in self.problems]
        return "\n".join(lines)

    def write(self, directory: str | Path = ".") -> Path:
        """Write the results directory of `traincheck-check` into *directory* and return its path.

        Raises:
            OSError: a file cannot be written.
        """
        path = create_results_directory(Path(directory), datetime.now())
        write_results(path, [self.result], self.invariants)
        return path

    def html(self) -> str:
        """Return the report as a page."""
        return render_html(self.result)

    def _verdict(self, totals: Totals) -> str:
        watched = self.result.num_steps
        steps = count_of(watched, "step")
        if watched < self.num_steps:
            steps = f"{watched:,} watched of {count_of(self.num_steps, 'step')}"
        if self.diagnoses:
            counts = Counter(d.severity for d in self.diagnoses)
            found = [f"{counts[s]} {s}" for s in reversed(SEVERITIES) if counts[s]]
            return f"{' and '.join(found)} in {steps}"
        if totals.num_not_triggered == totals.num_invariants:
            return f"nothing was checked in {steps}"
        if not self.num_steps:
            return NO_STEP
        if totals.num_errors or self.problems:
            return f"no violation seen in {steps}, but not everything could be observed or checked"
        return f"no violation in {steps}"


def message_of(diagnoses: Sequence[Diagnosis]) -> str:
    """Return diagnoses as one line, for an exception."""
    return "; ".join(
        d.message + (f" ({d.cause})" if d.cause else "") + (f" at {d.source}" if d.source else "")
        for d in diagnoses
    )
