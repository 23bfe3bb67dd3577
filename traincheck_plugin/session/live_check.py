"""Checks a live run with the core that checks traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from traincheck_plugin.checker.check import CheckResult, conclude
from traincheck_plugin.checker.diagnosis import Diagnosis, News
from traincheck_plugin.checker.rank_check import RankCheck
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.plan import Plan
from traincheck_plugin.session.comparison import Comparison
from traincheck_plugin.trace.manifest import Outcome


class LiveCheck:
    """A sink of a session that checks each window as it comes.

    Args:
        invariants: what to check.
        script: file name of the entry script.
        plan: what is observed.
        tell: called with each diagnosis, once, in the thread that trains.
        comparison: of this rank with the others, if there are any.
    """

    def __init__(
        self,
        invariants: Sequence[Invariant],
        script: str,
        plan: Plan,
        tell: Callable[[Diagnosis], None],
        comparison: Comparison | None = None,
    ) -> None:
        self._invariants = invariants
        self._check = RankCheck(invariants, script, plan)
        self._across = RankCheck(invariants, script, plan, is_across_ranks=True)
        self._comparison = comparison
        self._news = News()
        self._was_observed = True
        self._tell = tell

    def write(self, window: Window) -> None:
        """Check the next window."""
        if not window.observed and not self._was_observed:
            # The monitors know already that there is a gap.
            return
        self._was_observed = window.observed
        self._check.observe(window)
        if self._comparison is not None:
            self._comparison.write(window)
        self._observe_steps()
        self._tell_news()

    def close(self, outcome: Outcome, *, problems: Sequence[str]) -> None:
        """End the check."""
        if self._comparison is not None:
            self._comparison.close(how_of(outcome))
        self._observe_steps()
        self._check.finish(is_success=outcome.is_success)
        self._across.finish()
        self._tell_news()

    def result(self, path: str, problems: Sequence[str]) -> CheckResult:
        """Return what was found so far.

        Args:
            path: of the trace, "" where none is written.
            problems: what could not be observed.
        """
        ended = self._comparison.problems if self._comparison is not None else ()
        return conclude(
            path,
            self._invariants,
            [self._check.result()],
            [*problems, *ended],
            across=self._across.result(),
        )

    def _observe_steps(self) -> None:
        """Check the steps for which all ranks have been put side by side meanwhile."""
        if self._comparison is not None:
            for step in self._comparison.steps():
                self._across.observe(step)

    def _tell_news(self) -> None:
        for diagnosis in self._news.of([*self._check.violations, *self._across.violations]):
            self._tell(diagnosis)


def how_of(outcome: Outcome) -> str:
    """Return how a rank ended, as the others are told."""
    return f"{outcome.how} {outcome.detail}".strip()
