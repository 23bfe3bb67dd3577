"""The results directory of a check: files for programs, and a page for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.checker.violation import Outcome, Violation
from traincheck_plugin.invariants.codec import encode_invariant
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.model import SEVERITIES, Invariant
from traincheck_plugin.report.html import render_html
from traincheck_plugin.report.summary import first_violation, outcomes_of, total

SCHEMA_VERSION = 1
"""Of violations_summary.json."""


def create_results_directory(parent: Path, now: datetime) -> Path:
    """Create ``traincheck_checker_results_<now>`` in *parent*, which is created as well."""
    parent.mkdir(parents=True, exist_ok=True)
    name = f"traincheck_checker_results_{now:%Y-%m-%d_%H-%M-%S}"
    return _create_new(parent, name)


def write_results(
    directory: Path, results: Sequence[CheckResult], invariants: Iterable[Invariant]
) -> None:
    """Write what a check found and what it checked; with several runs, a directory for each.

    Raises:
        OSError: a file cannot be written.
    """
    dump_invariants(invariants, directory / "invariants.json")
    for result in results:
        alone = len(results) == 1
        name = Path(result.run_path.rstrip("/")).name or "trace"
        write_run_results(directory if alone else _create_new(directory, name), result)


def write_run_results(directory: Path, result: CheckResult) -> None:
    """Write the logs, the summary and the page of one checked run."""
    failed = [_failed_entry(o, result) for o in outcomes_of(result, "failed")]
    _write_lines(directory / "failed.log", failed)
    for status in ("passed", "not_triggered"):
        entries = (_entry(o, result) for o in outcomes_of(result, status))
        _write_lines(directory / f"{status}.log", entries)
    errors = outcomes_of(result, "error")
    if errors:
        entries = (_entry(o, result) | {"message": o.error, "error": o.error} for o in errors)
        _write_lines(directory / "errors.log", entries)
    summary = json.dumps(encode_summary(result), indent=2)
    (directory / "violations_summary.json").write_text(summary + "\n", encoding="utf-8")
    (directory / "report.html").write_text(render_html(result), encoding="utf-8")


def encode_summary(result: CheckResult) -> dict[str, Any]:
    """Return the JSON object of violations_summary.json."""
    totals = total([result])
    failed = outcomes_of(result, "failed")
    return {
        "schema_version": SCHEMA_VERSION,
        "trace": result.run_path,
        "num_steps": result.num_steps,
        "num_windows": result.num_windows,
        "duration_ns": result.duration_ns,
        "problems": list(result.problems),
        "num_invariants": totals.num_invariants,
        "num_failed": totals.num_failed,
        "num_passed": totals.num_passed,
        "num_not_triggered": totals.num_not_triggered,
        "num_errors": totals.num_errors,
        "num_failed_by_severity": {
            severity: sum(o.invariant.severity == severity for o in failed)
            for severity in reversed(SEVERITIES)
        },
        "diagnoses": [_encode_diagnosis(d) for d in result.diagnoses],
    }


def _encode_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    first = diagnosis.first
    return {
        "severity": diagnosis.severity,
        "message": diagnosis.message,
        "cause": diagnosis.cause,
        "source": diagnosis.source,
        "first_step": first.step,
        "first_epoch": first.epoch,
        "first_stage": first.stage,
        "ranks": sorted({v.rank for v in diagnosis.violations}),
        "num_occurrences": max(v.num_occurrences for v in diagnosis.violations),
        "last_step": max(v.last_step for v in diagnosis.violations),
        "violations": [
            {
                "relation": v.invariant.relation,
                "text_description": v.invariant.text_description,
                "severity": v.invariant.severity,
                **_encode_violation(v),
            }
            for v in diagnosis.violations
        ],
    }


def _encode_violation(violation: Violation) -> dict[str, Any]:
    cause = violation.cause
    return {
        "message": violation.message,
        "cause": cause.text if cause else "",
        "source": violation.source,
        "rank": violation.rank,
        "step": violation.step,
        "epoch": violation.epoch,
        "stage": violation.stage,
        "num_occurrences": violation.num_occurrences,
        "last_step": violation.last_step,
    }


def _entry(outcome: Outcome, result: CheckResult) -> dict[str, Any]:
    """Return the entry of an invariant that did not fail; times and places stay empty."""
    return {
        "invariant": encode_invariant(outcome.invariant),
        "severity": outcome.invariant.severity,
        "message": outcome.invariant.text_description,
        "check_passed": outcome.status != "error",
        "triggered": outcome.num_triggered > 0,
        "num_triggered": outcome.num_triggered,
        "detection_time": None,
        "detection_time_percentage": None,
        "detection_step": None,
        "rank": None,
        "source": "",
        "trace": result.run_path,
    }


def _failed_entry(outcome: Outcome, result: CheckResult) -> dict[str, Any]:
    first = first_violation(outcome)
    assert first is not None  # noqa: S101 - what failed has a violation
    duration = result.duration_ns
    return _entry(outcome, result) | {
        "message": first.message,
        "check_passed": False,
        "triggered": True,
        "detection_time": first.time_ns,
        # A fraction, under the name that TrainCheck gave it.
        "detection_time_percentage": min(first.time_ns / duration, 1.0) if duration > 0 else 0.0,
        "detection_step": first.step,
        "rank": first.rank,
        "source": first.source,
        "violations": [_encode_violation(violation) for violation in outcome.violations],
    }


def _write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _create_new(parent: Path, name: str) -> Path:
    """Create a directory that was not there: *name*, or *name* with a number."""
    for number in count(1):
        path = parent / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("count() does not end")
