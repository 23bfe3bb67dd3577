"""What checking a run told, and whether it was right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from tests.pipelines.catalog import Bug
from traincheck_plugin.checker.check import check
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.trace.reader import open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A diagnosis that a user would be shown, from `warning` on.

    Attributes:
        step: of its first violation.
        severity, text: as shown; the text is the message and the cause.
        rules: what failed, to recognise the same report of another run.
    """

    step: int
    severity: str
    text: str
    rules: frozenset[Invariant]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a bug.

    Attributes:
        found: whether something was reported that the healthy twin does not show as well.
        step: the earliest such report; -1 without.
        late: how many training steps after the first wrong one.
        severity: of the gravest such report.
        names_cause: whether the first thing that the user reads names the true cause.
        told: that first thing.
        num_reports: how many diagnoses the user is shown.
    """

    found: bool
    step: int = -1
    late: int = 0
    severity: str = ""
    names_cause: bool = False
    told: str = ""
    num_reports: int = 0


def reports(path: Path, invariants: Sequence[Invariant]) -> list[Report]:
    """Check the trace at *path*."""
    diagnoses = check(open_run(path), invariants).diagnoses
    return [_report(d) for d in diagnoses if d.severity != "info"]


def judge(bug: Bug, found: Sequence[Report], twin: AbstractSet[Invariant]) -> Verdict:
    """Judge what was reported of a run with a bug.

    Args:
        bug: that it was started with.
        found: what was reported, first what the user reads first.
        twin: the rules that fail on the healthy twin: what they say is no finding.
    """
    right = [r for r in found if r.step >= bug.step and not r.rules <= twin]
    if not right:
        return Verdict(found=False, num_reports=len(found))
    step = min(report.step for report in right)
    first = found[0].text
    return Verdict(
        found=True,
        step=step,
        late=step - bug.step,
        severity=right[0].severity,
        names_cause=re.search(bug.cause, first, re.IGNORECASE | re.DOTALL) is not None,
        told=first,
        num_reports=len(found),
    )


def _report(diagnosis: Diagnosis) -> Report:
    return Report(
        step=diagnosis.first.step,
        severity=diagnosis.severity,
        text=f"{diagnosis.message} -- {diagnosis.cause}".removesuffix(" -- "),
        rules=frozenset(v.invariant for v in diagnosis.violations if v.severity != "info"),
    )
