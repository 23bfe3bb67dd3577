"""Checks a run whose trace is still being written: all ranks at once, until it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.check import CheckResult, combine, problems_of
from traincheck_plugin.checker.diagnosis import Diagnosis, News
from traincheck_plugin.checker.rank_check import RankCheck
from traincheck_plugin.checker.ranks import StepMerger
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.trace.reader import RankTrace, Run

POLL_SECONDS = 0.5
"""How long a violation waits for others of the same cause before it is told."""


def follow(
    run: Run, invariants: Sequence[Invariant], *, tell: Callable[[Diagnosis], None]
) -> CheckResult:
    """Check *run* while it goes on; return when it ends, or on Ctrl-C with what was seen.

    Args:
        run: an opened trace; only the ranks that it has are followed.
        invariants: what to check.
        tell: called once for each diagnosis, in this thread, soon after it is found; the result
            holds it again, with all that was added to it later.

    Raises:
        InvariantError: an invariant names an unknown relation or has unfit parameters.
        TraceError: the trace cannot be read, or is not a local one.
    """
    lock = threading.Lock()
    stop = threading.Event()
    script, plan = run.manifest.script, run.plan
    across = _Across(
        StepMerger(trace.rank for trace in run.ranks),
        RankCheck(invariants, script, plan, is_across_ranks=True),
    )
    ranks = [
        _Follower(trace, RankCheck(invariants, script, plan), across, lock, stop)
        for trace in run.ranks
    ]
    news = News()

    def tell_new() -> None:
        with lock:
            checks = [*(rank.check for rank in ranks), across.check]
            found = news.of(v for check in checks for v in check.violations)
        for diagnosis in found:
            tell(diagnosis)

    try:
        for rank in ranks:
            rank.start()
        while any(rank.is_alive() for rank in ranks):
            stop.wait(POLL_SECONDS)
            tell_new()
    except KeyboardInterrupt:
        pass
    finally:
        stop.set()
        for rank in ranks:
            if rank.is_alive():
                rank.join()
    for rank in ranks:
        if rank.error is not None:
            raise rank.error
    tell_new()
    across.check.finish()
    results = [rank.check.result(problems_of(rank.trace)) for rank in ranks]
    return combine(run, invariants, results, across.check.result())


@dataclass(frozen=True, slots=True)
class _Across:
    """What puts the ranks side by side, and what checks them then."""

    merger: StepMerger
    check: RankCheck

    def observe(self, steps: Iterable[Window]) -> None:
        for step in steps:
            self.check.observe(step)


class _Follower(threading.Thread):
    """Checks one rank; holds *lock* while a check changes."""

    def __init__(
        self,
        trace: RankTrace,
        check: RankCheck,
        across: _Across,
        lock: threading.Lock,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"traincheck-follow-{trace.rank}", daemon=True)
        self.check = check
        self.error: Exception | None = None
        self.trace = trace
        self._across = across
        self._lock = lock
        self._stop_event = stop

    def run(self) -> None:
        try:
            for stretch in self.trace.stretches(follow=True, stop=self._stop_event.is_set):
                with self._lock:
                    self.check.observe(stretch)
                    for window in stretch.parts:
                        self._across.observe(self._across.merger.add(self.trace.rank, window))
            with self._lock:
                self.check.finish(is_success=self.trace.is_success)
                self._across.observe(self._across.merger.finish(self.trace.rank))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
