"""Checks recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.diagnosis import Diagnosis, diagnose
from traincheck_plugin.checker.rank_check import RankCheck, merge_outcomes
from traincheck_plugin.checker.ranks import StepMerger, interleaved
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
    script, plan = run.manifest.script, run.plan
    ranks = [RankCheck(invariants, script, plan) for _ in run.ranks]
    across = RankCheck(invariants, script, plan, is_across_ranks=True)
    num_ended = 0
    for position, window, steps in interleaved(
        run.ranks, StepMerger(trace.rank for trace in run.ranks)
    ):
        if window is None:
            ranks[position].finish()
            num_ended += 1
        else:
            ranks[position].observe(window)
        for step in steps:
            across.observe(step)
        if progress is not None and window is None:
            progress(f"checked rank {run.ranks[position].rank}", num_ended / len(run.ranks))
    across.finish()
    return combine(run, invariants, ranks, across)


def combine(
    run: Run, invariants: Sequence[Invariant], ranks: Sequence[RankCheck], across: RankCheck
) -> CheckResult:
    """Return what the checks of all ranks of *run*, and that across them, found in the end."""
    problems = list(run.problems)
    for trace in run.ranks:
        problems += trace.problems
        problems += trace.end.problems if trace.end is not None else ()
    return conclude(str(run.path), invariants, ranks, problems, across=across)


def conclude(
    path: str,
    invariants: Sequence[Invariant],
    ranks: Sequence[RankCheck],
    problems: Sequence[str],
    *,
    across: RankCheck | None = None,
) -> CheckResult:
    """Return what the checks of some ranks came to.

    Args:
        path: of the trace; "" for a live run that writes none.
        invariants: what was checked.
        ranks: their checks.
        problems: what else limits the result.
        across: the check of what is true of all ranks together.
    """
    outcomes = merge_outcomes([*ranks, *([across] if across is not None else ())], invariants)
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
