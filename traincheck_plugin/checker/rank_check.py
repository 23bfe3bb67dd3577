"""One rank of a run being checked, or all together: the checker and the size of what it saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from traincheck_plugin.checker.checker import Checker
from traincheck_plugin.checker.violation import Outcome, Violation
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What the check of one rank came to; can be sent to another process.

    Attributes:
        outcomes: one for each invariant, in the order given.
        num_windows, num_unobserved, foreign, steps, duration_ns: as in `RankCheck`.
        problems: what limits the result.
    """

    outcomes: Sequence[Outcome]
    num_windows: int
    num_unobserved: int
    foreign: tuple[Invariant, ...]
    steps: frozenset[int]
    duration_ns: int
    problems: tuple[str, ...] = ()


class RankCheck:
    """Checks the windows of one rank, in order.

    Attributes:
        num_windows: seen so far.
        steps: indices of the training steps seen so far.
        duration_ns: from the start of the recording to the last call seen.
    """

    def __init__(
        self,
        invariants: Sequence[Invariant],
        script: str,
        plan: Plan,
        *,
        is_across_ranks: bool = False,
    ) -> None:
        """Prepare to check *invariants* on a run of *script* that *plan* tells what is seen of."""
        self._checker = Checker(
            invariants, script=script, plan=plan, is_across_ranks=is_across_ranks
        )
        self.num_windows = 0
        self.steps: set[int] = set()
        self.duration_ns = 0

    def observe(self, window: Window) -> None:
        """Check the next window, or stretch of windows."""
        self._checker.observe(window)
        self.num_windows += window.num_parts
        if len(window.calls):
            self.duration_ns = max(self.duration_ns, int(window.calls.end_ns[-1]))
        self.steps.update(window.steps)

    def finish(self, *, is_success: bool = False) -> None:
        """End the run; see `Checker.finish`."""
        self._checker.finish(is_success=is_success)

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """One for each invariant, in the order given."""
        return self._checker.outcomes

    @property
    def num_unobserved(self) -> int:
        """How many invariants need more than is observed, and are not checked."""
        return self._checker.num_unobserved

    @property
    def foreign(self) -> tuple[Invariant, ...]:
        """Invariants of other pipelines, which are not checked, where none is of this one."""
        return self._checker.foreign

    def result(self, problems: Sequence[str] = ()) -> RankResult:
        """Return what the check came to."""
        return RankResult(
            outcomes=self.outcomes,
            num_windows=self.num_windows,
            num_unobserved=self.num_unobserved,
            foreign=self.foreign,
            steps=frozenset(self.steps),
            duration_ns=self.duration_ns,
            problems=tuple(problems),
        )

    @property
    def violations(self) -> list[Violation]:
        """What failed so far; nothing before the first step, which tells the pipeline."""
        if not self.steps:
            return []
        return [violation for outcome in self.outcomes for violation in outcome.violations]


def merge_outcomes(ranks: Iterable[RankResult], invariants: Iterable[Invariant]) -> list[Outcome]:
    """Return one outcome for each of *invariants*, all ranks together."""
    merged = [Outcome(invariant=invariant) for invariant in invariants]
    for rank in ranks:
        for total, outcome in zip(merged, rank.outcomes, strict=True):
            total.num_triggered += outcome.num_triggered
            total.violations += outcome.violations
            total.error = total.error or outcome.error
    return merged
