"""Checks recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.checker import Checker
from traincheck_plugin.checker.diagnosis import Diagnosis, diagnose
from traincheck_plugin.checker.violation import Outcome
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.trace.reader import RankTrace, Run

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What checking a run found.

    Attributes:
        run_path: the trace.
        outcomes: one for each invariant, all ranks together.
        diagnoses: gravest first.
        num_windows, num_steps: size of what was checked.
        duration_ns: of the recording.
        problems: what limits the result: a trace that was cut, what could not be observed.
    """

    run_path: str
    outcomes: tuple[Outcome, ...]
    diagnoses: tuple[Diagnosis, ...]
    num_windows: int
    num_steps: int
    duration_ns: int
    problems: tuple[str, ...]


def check(
    run: Run, invariants: Sequence[Invariant], *, progress: Progress | None = None
) -> CheckResult:
    """Check every rank of a run.

    Args:
        run: an opened trace.
        invariants: what to check.
        progress: called with what is being done and the part of it that is done.

    Raises:
        InvariantError: an invariant names an unknown relation or has unfit parameters.
        TraceError: the trace cannot be read.
    """
    outcomes = [Outcome(invariant=invariant) for invariant in invariants]
    num_windows = duration_ns = 0
    steps: set[int] = set()
    problems = list(run.problems)
    for position, trace in enumerate(run.ranks):
        if progress is not None:
            progress(f"checking rank {trace.rank}", position / len(run.ranks))
        checker = Checker(invariants, script=run.manifest.script)
        for window in trace.windows():
            checker.observe(window)
            num_windows += 1
            if len(window.calls):
                duration_ns = max(duration_ns, int(window.calls.end_ns[-1]))
            steps |= {
                window.catalog.contexts[int(code)].step
                for api in window.api_codes
                if window.catalog.apis[api].role == "step"
                for code in window.calls.context[window.rows_of_api(api)]
            }
        checker.finish()
        for total, outcome in zip(outcomes, checker.outcomes, strict=True):
            total.num_triggered += outcome.num_triggered
            total.violations += outcome.violations
            total.error = total.error or outcome.error
        problems += _problems(trace)
    if progress is not None:
        progress("checked", 1.0)
    return CheckResult(
        run_path=str(run.path),
        outcomes=tuple(outcomes),
        diagnoses=diagnose(v for outcome in outcomes for v in outcome.violations),
        num_windows=num_windows,
        num_steps=len(steps),
        duration_ns=duration_ns,
        problems=tuple(problems),
    )


def _problems(trace: RankTrace) -> list[str]:
    """Return what limits the result, from the reader and from the recorder."""
    recorded = list(trace.end.problems) if trace.end is not None else []
    return [*trace.problems, *recorded]
