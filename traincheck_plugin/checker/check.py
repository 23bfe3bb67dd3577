"""Checks recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from traincheck_plugin.checker.diagnosis import Diagnosis, diagnose
from traincheck_plugin.checker.rank_check import RankCheck, RankResult, merge_outcomes
from traincheck_plugin.checker.ranks import StepMerger, interleaved, steps_of
from traincheck_plugin.checker.violation import Outcome
from traincheck_plugin.engine import Engine
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.trace.reader import RankTrace, Run, open_run

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
    run: Run,
    invariants: Sequence[Invariant],
    *,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> CheckResult:
    """Check every rank of a run, and all of them side by side.

    Args:
        run: an opened trace.
        invariants: what to check.
        progress: called with what is being done and the part of it that is done.
        engine: where to work, a piece for each rank; None for this process, where the ranks are
            read at once.

    Raises:
        InvariantError: an invariant names an unknown relation or has unfit parameters.
        TraceError: the trace cannot be read.
    """
    report = progress or (lambda what, part: None)
    report("checking", 0.0)
    if engine is None:
        ranks, across = _check_here(run, invariants, report)
        return combine(run, invariants, ranks, across)
    pieces = [_Piece(path=str(run.path), rank=trace.rank) for trace in run.ranks]
    pieces.append(_Piece(path=str(run.path), rank=None))
    results = []
    for result in engine.map(partial(_check_piece, invariants=tuple(invariants)), pieces):
        results.append(result)
        report("checking", len(results) / len(pieces))
    *ranks, across = results
    return combine(run, invariants, ranks, across)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """One rank of a run, or (None) all of them side by side, as a worker needs it."""

    path: str
    rank: int | None


def _check_piece(piece: _Piece, invariants: Sequence[Invariant]) -> RankResult:
    run = open_run(piece.path)
    is_across = piece.rank is None
    check = RankCheck(invariants, run.manifest.script, run.plan, is_across_ranks=is_across)
    if is_across:
        for step in steps_of(run.ranks):
            check.observe(step)
        check.finish()
        return check.result()
    [trace] = [trace for trace in run.ranks if trace.rank == piece.rank]
    for stretch in trace.stretches():
        check.observe(stretch)
    check.finish(is_success=trace.is_success)
    return check.result(problems_of(trace))


def _check_here(
    run: Run, invariants: Sequence[Invariant], report: Progress
) -> tuple[list[RankResult], RankResult]:
    """Check all ranks in one go: each is read once."""
    script, plan = run.manifest.script, run.plan
    checks = {trace.rank: RankCheck(invariants, script, plan) for trace in run.ranks}
    across = RankCheck(invariants, script, plan, is_across_ranks=True)
    if len(run.ranks) == 1:
        # What is true of all ranks together needs more than one.
        [trace], [check] = run.ranks, checks.values()
        for stretch in trace.stretches():
            check.observe(stretch)
        check.finish(is_success=trace.is_success)
        report("checking", 1.0)
        return [check.result(problems_of(trace))], across.result()

    def windows(trace: RankTrace) -> Iterator[Window]:
        for stretch in trace.stretches():
            checks[trace.rank].observe(stretch)
            yield from stretch.parts
        checks[trace.rank].finish(is_success=trace.is_success)
        ended.add(trace.rank)
        report("checking", len(ended) / len(run.ranks))

    ended: set[int] = set()
    reading = {trace.rank: windows(trace) for trace in run.ranks}
    for _, steps in interleaved(reading, StepMerger(reading)):
        for step in steps:
            across.observe(step)
    across.finish()
    return [checks[t.rank].result(problems_of(t)) for t in run.ranks], across.result()


def problems_of(trace: RankTrace) -> list[str]:
    """Return what limits the check of a rank that has been read to its end."""
    return [*trace.problems, *(trace.end.problems if trace.end is not None else ())]


def combine(
    run: Run, invariants: Sequence[Invariant], ranks: Sequence[RankResult], across: RankResult
) -> CheckResult:
    """Return what the checks of all ranks of *run*, and that across them, came to together."""
    problems = [*run.problems, *(problem for rank in ranks for problem in rank.problems)]
    return conclude(str(run.path), invariants, ranks, problems, across=across)


def conclude(
    path: str,
    invariants: Sequence[Invariant],
    ranks: Sequence[RankResult],
    problems: Sequence[str],
    *,
    across: RankResult | None = None,
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
    foreign = max((rank.foreign for rank in ranks), key=len, default=())
    if foreign:
        problems = [_foreign(foreign, len(invariants)), *problems]
    return CheckResult(
        run_path=path,
        outcomes=tuple(outcomes),
        diagnoses=diagnose(v for outcome in outcomes for v in outcome.violations),
        num_windows=sum(rank.num_windows for rank in ranks),
        num_steps=len(set().union(*(rank.steps for rank in ranks))),
        duration_ns=max((rank.duration_ns for rank in ranks), default=0),
        problems=tuple(problems),
    )


def _foreign(foreign: Sequence[Invariant], number: int) -> str:
    """Say which invariants were not checked since the run is not of their pipelines."""
    scripts = sorted({p.script for one in foreign for p in one.pipelines if p.script})
    more = f" and {len(scripts) - 3} more" if len(scripts) > 3 else ""
    whose = f" of {', '.join(scripts[:3])}{more}" if scripts else ""
    return (
        f"{len(foreign)} of {number} invariants were not checked: they speak of the models"
        f"{whose}, and this run trains another one"
    )
