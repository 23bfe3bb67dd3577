"""The report of a check as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from traincheck_plugin.checker.check import CheckResult
from traincheck_plugin.checker.violation import Outcome
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.report.summary import (
    NO_STEP,
    Totals,
    first_violation,
    has_violation,
    outcomes_of,
    total,
)
from traincheck_plugin.report.text import count_of, first_occurrence, occurrences
from traincheck_plugin.version import __version__


def render_html(result: CheckResult) -> str:
    """Return the page about one checked run."""
    # Everything that came out of a trace is escaped: names and paths are other people's text.
    environment = Environment(
        loader=PackageLoader("traincheck_plugin.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = with_code
    environment.filters["evidence"] = evidence_of
    environment.filters["first_occurrence"] = first_occurrence
    environment.filters["occurrences"] = occurrences
    totals = total([result])
    state, verdict = verdict_of(result, totals)
    page: dict[str, Any] = {
        "state": state,
        "verdict": verdict,
        "result": result,
        "totals": totals,
        "duration": duration_of(result.duration_ns),
        "diagnoses": result.diagnoses,
        "sections": [
            ("Failed", outcomes_of(result, "failed"), True),
            ("Could not be checked", outcomes_of(result, "error"), True),
            ("Not triggered", outcomes_of(result, "not_triggered"), False),
            ("Passed", outcomes_of(result, "passed"), False),
        ],
        "message_of": message_of,
        "version": __version__,
    }
    return environment.get_template("report.html.j2").render(page)


def verdict_of(result: CheckResult, totals: Totals) -> tuple[str, str]:
    """Return the state of a run (a CSS class) and the verdict in one sentence."""
    graves = [d.severity for d in result.diagnoses if d.severity != "info"]
    found = f"{count_of(len(graves), 'problem')} found"
    if has_violation([result], "critical"):
        return "critical", f"{found}, {graves.count('critical')} critical"
    if has_violation([result], "warning"):
        return "warning", found
    if totals.num_errors:
        return "warning", "Nothing found, but not everything could be checked"
    if totals.num_not_triggered == totals.num_invariants:
        return "unknown", "Nothing was checked: no invariant was triggered"
    if not result.num_steps:
        return "unknown", NO_STEP[0].upper() + NO_STEP[1:]
    return "healthy", "Nothing to report"


def message_of(outcome: Outcome) -> str:
    """Return what happened to an invariant: what failed, why it could not be checked, or ""."""
    if outcome.error:
        return outcome.error
    first = first_violation(outcome)
    return first.message if first else ""


def evidence_of(invariant: Invariant) -> str:
    """Return why an invariant is believed, in one sentence."""
    evidence = invariant.evidence
    if not evidence.num_occurrences:
        examples = count_of(evidence.num_positive_examples, "example")
        return f"{examples} for, {evidence.num_negative_examples:,} against"
    return (
        f"held in {count_of(evidence.num_occurrences, 'step')} of "
        f"{count_of(evidence.num_runs, 'run')}, {evidence.num_held_out:,} of them held out; "
        f"fails in less than {evidence.failure_bound:.1%} of healthy steps (95 % confidence)"
    )


def with_code(text: str) -> Markup:
    """Return *text*, escaped, with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its partner is just a character
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )


def duration_of(duration_ns: int) -> str:
    """Return a duration as a reader would say it."""
    seconds = duration_ns / 1e9
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
