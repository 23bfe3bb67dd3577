"""Checks a run whose trace is still being written: all ranks at once, until it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from traincheck_plugin.checker.check import CheckResult, combine
from traincheck_plugin.checker.diagnosis import Diagnosis, News
from traincheck_plugin.checker.rank_check import RankCheck
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
    ranks = [
        _Follower(trace, RankCheck(invariants, run.manifest.script, run.plan), lock, stop)
        for trace in run.ranks
    ]
    news = News()

    def tell_new() -> None:
        with lock:
            found = news.of(v for rank in ranks for v in rank.check.violations)
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
    return combine(run, invariants, [rank.check for rank in ranks])


class _Follower(threading.Thread):
    """Checks one rank; holds *lock* while the check changes."""

    def __init__(
        self, trace: RankTrace, check: RankCheck, lock: threading.Lock, stop: threading.Event
    ) -> None:
        super().__init__(name=f"traincheck-follow-{trace.rank}", daemon=True)
        self.check = check
        self.error: Exception | None = None
        self._trace = trace
        self._lock = lock
        self._stop_event = stop

    def run(self) -> None:
        try:
            for window in self._trace.windows(follow=True, stop=self._stop_event.is_set):
                with self._lock:
                    self.check.observe(window)
            with self._lock:
                self.check.finish()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            self.error = error
