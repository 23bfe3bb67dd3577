"""The report of a check on the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.invariants.model import SEVERITIES, Severity
from traincheck_plugin.report.summary import NO_STEP, is_at_least, outcomes_of, total
from traincheck_plugin.report.text import count_of, diagnosis_block, printable

STYLES = {"critical": "bold red", "warning": "bold yellow", "info": "bold cyan"}

MAX_WIDTH = 100
"""Longer lines are harder to read, however wide the terminal is."""

MAX_ERRORS = 3
"""Errors of the checker that are shown; errors.log has all of them."""


def print_results(
    results: Sequence[CheckResult], console: Console, minimum: Severity, directory: Path
) -> None:
    """Print the report of one or several checked runs.

    Args:
        results: of runs that were checked with the same invariants.
        console: where to.
        minimum: diagnoses below this severity are only counted.
        directory: where the results were written.
    """
    for result in results:
        if len(results) > 1:
            _print(console, f"== {printable(result.run_path)}", style="bold")
        print_result(result, console, minimum)
    _print(console, f"Results: {directory}")
    print_totals(results, console)


def print_result(result: CheckResult, console: Console, minimum: Severity) -> None:
    """Print what was found in one run: diagnoses, then what a reader must know to trust them."""
    reported = [d for d in result.diagnoses if is_at_least(d.severity, minimum)]
    for diagnosis in reported:
        print_diagnosis(diagnosis, console)
        _print(console)
    remarks = [*_hidden(result, minimum, is_first=not reported), *_limits(result)]
    if not reported:
        remarks.insert(0, (_nothing_reported(result, minimum), ""))
    for line, style in remarks:
        _print(console, line, style)
    if remarks:
        _print(console)


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """Print one diagnosis."""
    for number, (label, line) in enumerate(
        diagnosis_block(diagnosis, min(console.width, MAX_WIDTH))
    ):
        style = STYLES[diagnosis.severity] if number == 0 else "dim"
        text = Text(label, style) + Text(line, "bold" if number == 0 else "")
        console.print(text, soft_wrap=True)


def print_totals(results: Sequence[CheckResult], console: Console) -> None:
    """Print the closing lines; other programs read them, so their form is fixed."""
    totals = total(results)
    number = totals.num_invariants
    if totals.num_errors:
        _print(console, f"Total invariants with checker errors: {totals.num_errors}/{number}")
    _print(console, f"Checking finished. {number} invariants checked")
    _print(console, f"Total failed invariants: {totals.num_failed}/{number}")
    _print(console, f"Total passed invariants: {totals.num_passed}/{number}")
    _print(console, f"Total invariants that are not triggered: {totals.num_not_triggered}/{number}")


def _nothing_reported(result: CheckResult, minimum: Severity) -> str:
    totals = total([result])
    number = count_of(totals.num_invariants, "invariant")
    steps = count_of(result.num_steps, "step")
    if totals.num_not_triggered == totals.num_invariants:
        return f"Nothing was checked: none of {number} was triggered in {steps}"
    if totals.num_errors:
        return f"Nothing found in {steps}, but not everything could be checked"
    if not result.num_steps:
        return NO_STEP[0].upper() + NO_STEP[1:]
    if not result.diagnoses:
        return f"No violation in {steps}: {totals.num_passed} of {number} triggered, and held"
    return f"Nothing at {minimum} or above in {steps}"


def _hidden(result: CheckResult, minimum: Severity, *, is_first: bool) -> Iterator[tuple[str, str]]:
    counts = Counter(d.severity for d in result.diagnoses)
    below = [s for s in reversed(SEVERITIES) if counts[s] and not is_at_least(s, minimum)]
    if below:
        more = "" if is_first else "more "
        numbers = ", ".join(f"{counts[severity]} {more}at {severity}" for severity in below)
        yield f"{numbers}: see failed.log, or --min-severity {below[-1]}", ""


def _limits(result: CheckResult) -> Iterator[tuple[str, str]]:
    """Return what keeps a report without violations from meaning a healthy run."""
    errors = outcomes_of(result, "error")
    if errors:
        number = count_of(len(errors), "invariant")
        yield f"{number} could not be checked, see errors.log:", "bold red"
    for outcome in errors[:MAX_ERRORS]:
        yield f"  {outcome.invariant.relation}: {printable(outcome.error)}", ""
    if len(errors) > MAX_ERRORS:
        yield f"  and {len(errors) - MAX_ERRORS} more", ""
    for problem in result.problems:
        yield f"Note: {printable(problem)}", "yellow"


def _print(console: Console, line: str = "", style: str = "") -> None:
    # As text, not markup: names of parameters may hold brackets.
    console.print(Text(line, style), soft_wrap=True)
