"""What a relation is: it proposes hypotheses, labels examples and explains failures.

A relation has one labelling function, `Monitor.observe`. Inference, offline checking and live
checking all call it; nothing else decides whether a rule holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.vocabulary import Bool, Int32, Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """The likely cause of a failure, read off the recorded state.

    Attributes:
        fact: what the failing variables (or calls) have in common: ``requires_grad=False``.
            Failures with the same fact about the same subjects are one diagnosis.
        subjects: names of the variables (or APIs) that the fact is about.
        text: the cause as a sentence.
        left_out: names of variables that the cause deprives too: trainable, and in no optimizer.
            Failures about nothing but these follow from it.
    """

    fact: str
    subjects: tuple[str, ...]
    text: str
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why one example failed.

    Attributes:
        message: what happened instead of what was expected, without place and time.
        cause: the likely cause; None where the recorded state does not tell.
    """

    message: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """When and where a call was, for what can only be told when its window is gone.

    Attributes:
        context, source: codes into the catalog.
        sequence, time_ns: when.
    """

    context: int
    source: int
    sequence: int
    time_ns: int

    @classmethod
    def of(cls, window: Window, row: int) -> Place:
        """Return that of a call of a window."""
        calls = window.calls
        return cls(
            context=int(calls.context[row]),
            source=int(calls.source[row]),
            sequence=int(calls.begin[row]),
            time_ns=int(calls.end_ns[row]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The places in one window where a hypothesis holds or fails, as columns.

    Attributes:
        holds: whether it held.
        context, source: codes into the catalog of the window.
        sequence, time_ns: when.
        explain: explains the example of that row; only valid while its window is at hand.
        position: of a stretch, in which of its windows; None where there is only one.
    """

    holds: Bool
    context: Int32
    source: Int32
    sequence: Int64
    time_ns: Int64
    explain: Callable[[int], Explanation]
    position: Int64 | None = None

    def __len__(self) -> int:
        return len(self.holds)

    @classmethod
    def of_calls(
        cls, window: Window, rows: Int64, holds: Bool, explain: Callable[[int], Explanation]
    ) -> Examples:
        """Build the examples that are calls: *rows* of the window's calls."""
        calls = window.calls
        return cls(
            holds=holds,
            context=calls.context[rows],
            source=calls.source[rows],
            sequence=calls.begin[rows],
            time_ns=calls.end_ns[rows],
            explain=explain,
            position=None if window.joint is None else window.position_of(rows),
        )

    @classmethod
    def of_failures(
        cls, places: Sequence[Place], explain: Callable[[int], Explanation]
    ) -> Examples:
        """Build the examples that fail at the end of a run, at places that it was at."""
        return cls(
            holds=np.zeros(len(places), np.bool_),
            context=np.array([place.context for place in places], np.int32),
            source=np.array([place.source for place in places], np.int32),
            sequence=np.array([place.sequence for place in places], np.int64),
            time_ns=np.array([place.time_ns for place in places], np.int64),
            explain=explain,
        )


def no_explanation(row: int) -> Explanation:
    """Explain an example that cannot fail."""
    raise IndexError(row)


NO_EXAMPLES = Examples(
    holds=np.empty(0, np.bool_),
    context=np.empty(0, np.int32),
    source=np.empty(0, np.int32),
    sequence=np.empty(0, np.int64),
    time_ns=np.empty(0, np.int64),
    explain=no_explanation,
)


class Monitor(ABC):
    """Labels the examples of one hypothesis in the windows of one process, in order.

    Its memory is bounded: it keeps what the next windows need, never windows. Where its relation
    takes stretches, how windows are joined makes no difference to the examples.
    """

    @abstractmethod
    def observe(self, window: Window) -> Examples:
        """Return the examples that *window* completes."""

    def finish(self) -> Examples:
        """Return the examples that only the end of the run completes.

        Called once, after the last window, and only of a run that ended by itself and of which no
        window was left out: of another one nobody knows what it would still have done.
        """
        return NO_EXAMPLES


class Proposer(ABC):
    """Finds the hypotheses that are worth testing."""

    @abstractmethod
    def observe(self, window: Window) -> None:
        """Learn from a window of a reference run."""

    @abstractmethod
    def hypotheses(self) -> Iterable[Hypothesis]:
        """Return what the observed windows suggest, each once."""


class Relation(ABC):
    """A kind of rule; stateless.

    Attributes:
        name: of the relation.
        is_across_ranks: whether its windows are training steps of all ranks together, as
            `traincheck_plugin.checker.ranks` makes them, and not those of one process.
        takes_stretches: whether its monitors and proposers take windows that are joined (see
            `Window.joint`), and so work on many at once. Others get them one by one.
    """

    name: ClassVar[str]
    is_across_ranks: ClassVar[bool] = False
    takes_stretches: ClassVar[bool] = False

    def windows(self, stretch: Window) -> Iterable[Window]:
        """Return *stretch* as its monitors and proposers take it: as it is, or window by window."""
        return (stretch,) if self.takes_stretches else stretch.parts

    @abstractmethod
    def proposer(self) -> Proposer:
        """Return a new proposer."""

    @abstractmethod
    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        """Return a new monitor of the hypothesis with these parameters.

        Raises:
            InvariantError: the parameters are not those of this relation.
        """

    @abstractmethod
    def describe(self, params: tuple[Param, ...]) -> str:
        """Return the rule as one sentence."""

    @abstractmethod
    def needs(self, params: tuple[Param, ...]) -> Plan:
        """Return what has to be observed to check these parameters."""

    @abstractmethod
    def severity(self, params: tuple[Param, ...]) -> Severity:
        """Return how much a violation matters when the evidence is strong."""

    def regime(self, params: tuple[Param, ...]) -> tuple[str, ...]:
        """Return the context properties that can excuse a failure.

        Where the reference showed only one value of such a property, nothing is claimed of the
        others: it becomes part of the precondition although no example asked for it.
        """
        return ("stage",)

    def implied_by(self, params: tuple[Param, ...]) -> Hypothesis | None:
        """Return another hypothesis that makes this one superfluous where it holds as well."""
        return None
