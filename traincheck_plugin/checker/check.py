"""Checks recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.diagnosis import Diagnosis, diagnose
from traincheck_plugin.checker.rank_check import RankCheck, merge_outcomes
from traincheck_plugin.checker.violation import Outcome
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.trace.reader import Run

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
    ranks = []
    for position, trace in enumerate(run.ranks):
        if progress is not None:
            progress(f"checking rank {trace.rank}", position / len(run.ranks))
        rank = RankCheck(invariants, run.manifest.script, run.plan)
        for window in trace.windows():
            rank.observe(window)
        rank.finish()
        ranks.append(rank)
    if progress is not None:
        progress("checked", 1.0)
    return combine(run, invariants, ranks)


def combine(run: Run, invariants: Sequence[Invariant], ranks: Sequence[RankCheck]) -> CheckResult:
    """Return what the checks of all ranks of *run*, now at their end, found together."""
    problems = list(run.problems)
    for trace in run.ranks:
        problems += trace.problems
        problems += trace.end.problems if trace.end is not None else ()
    return conclude(str(run.path), invariants, ranks, problems)


def conclude(
    path: str, invariants: Sequence[Invariant], ranks: Sequence[RankCheck], problems: Sequence[str]
) -> CheckResult:
    """Return what the checks of some ranks came to.

    Args:
        path: of the trace; "" for a live run that writes none.
        invariants: what was checked.
        ranks: their checks.
        problems: what else limits the result.
    """
    outcomes = merge_outcomes(ranks, invariants)
    unobserved = max((rank.num_unobserved for rank in ranks), default=0)
    if unobserved:
        problems = [
            f"{unobserved} of {len(invariants)} invariants were not checked: they need more than "
            "was recorded of this run",
            *problems,
        ]
    return CheckResult(
        run_path=path,
        outcomes=tuple(outcomes),
        diagnoses=diagnose(v for outcome in outcomes for v in outcome.violations),
        num_windows=sum(rank.num_windows for rank in ranks),
        num_steps=len(set().union(*(rank.steps for rank in ranks))),
        duration_ns=max((rank.duration_ns for rank in ranks), default=0),
        problems=tuple(problems),
    )
