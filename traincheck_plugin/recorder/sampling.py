"""Which steps are observed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Observe the first steps, then one in every *interval*, or as many as the budget allows.

    Attributes:
        interval: 1 observes every step; None: as many as *max_overhead* allows.
        warm_up_steps: how many first steps are all observed, whatever they cost.
        max_overhead: the share of the training's time that observing may take, where *interval* is
            None.
        compares_ranks: whether the steps are observed too at which the ranks are compared; they
            are the same on all ranks, whatever each has time for.
    """

    interval: int | None = 1
    warm_up_steps: int = 0
    max_overhead: float = 0.01
    compares_ranks: bool = False


MAX_ATTENDED = 4
"""Starts of data loaders that are observed though no step before them is."""

COMPARED_EVERY = 128
"""Later on one step in so many is compared; before, the first ones and every power of two."""


def is_compared(step: int, sampling: Sampling) -> bool:
    """Return whether the ranks are compared after *step*, where they are at all."""
    if sampling.interval is not None:
        return step % sampling.interval == 0
    return step < sampling.warm_up_steps or step % COMPARED_EVERY == 0 or not step & (step - 1)


def first_compared(step: int, sampling: Sampling) -> int:
    """Return the first step that is compared, from *step* on."""
    while not is_compared(step, sampling):
        step += 1
    return step


def next_compared(step: int, sampling: Sampling) -> int:
    """Return the first step after *step* that is compared."""
    return first_compared(step + 1, sampling)


class Sampler:
    """Decides before each step whether to observe it.

    With a budget, a step is observed when its expected cost fits in what the budget has gathered
    since the steps that are observed in any case: time passes and fills it, observing empties it.
    So the share holds whatever steps take, and however that changes during the run. What lies
    between steps would hardly ever be seen in this way: so a few times it is observed all the same
    what comes when a loader is started, an evaluation most often.

    Attributes:
        is_attending: whether the window that begins next is observed for that.
    """

    def __init__(self, sampling: Sampling, first_step: int = 0) -> None:
        self._sampling = sampling
        self._attentive_until = first_step + sampling.warm_up_steps
        self._expected_ns = 0.0
        self._start_spent_ns = self._start_ns = 0
        self._last_spent_ns = 0
        self._was_observed = False
        self._num_attended = 0
        self.is_attending = False

    def attend_start(self) -> bool:
        """Have the window that begins observed, as a loader is started; return whether it is."""
        if self._sampling.interval is not None or self._num_attended == MAX_ATTENDED:
            return False
        self._num_attended += 1
        self.is_attending = True
        return True

    def attend(self, step: int) -> None:
        """Observe every step for a while from *step* on: something is going on."""
        self._attentive_until = step + self._sampling.warm_up_steps

    def observes(self, step: int, spent_ns: int, now_ns: int) -> bool:
        """Return whether the windows of *step* are observed.

        Args:
            step: index of the training step.
            spent_ns: time taken by observing so far.
            now_ns: time since the start.
        """
        if self._was_observed:
            cost = spent_ns - self._last_spent_ns
            # A slowly moving mean; the first step, which imports and compiles, is soon forgotten.
            self._expected_ns += (cost - self._expected_ns) * (0.3 if self._expected_ns else 1.0)
        self._last_spent_ns = spent_ns
        self._was_observed = self.is_attending or self.expects(step, spent_ns, now_ns)
        self.is_attending = False
        if step < self._attentive_until:
            self._start_spent_ns, self._start_ns = spent_ns, now_ns
        return self._was_observed

    def expects(self, step: int, spent_ns: int, now_ns: int) -> bool:
        """Return what `observes` would, if *step* began now, without beginning it."""
        if step < self._attentive_until:
            return True
        if self._sampling.interval is not None:
            return step % self._sampling.interval == 0
        if self._sampling.compares_ranks and is_compared(step, self._sampling):
            return True
        spent = spent_ns - self._start_spent_ns + self._expected_ns
        return spent <= self._sampling.max_overhead * (now_ns - self._start_ns)
