"""Which steps are observed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Observe the first steps, then one in every *interval*.

    Attributes:
        interval: 1 observes every step.
        warm_up_steps: how many first steps are all observed.
    """

    interval: int = 1
    warm_up_steps: int = 0

    def observes(self, step: int) -> bool:
        """Return whether the windows of *step* are observed."""
        return step < self.warm_up_steps or step % self.interval == 0
