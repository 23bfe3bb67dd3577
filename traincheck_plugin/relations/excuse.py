"""What is excused: a few failures in a row, since a rare batch may differ."""

from __future__ import annotations


class Excuse:
    """Tells which verdicts count: the first failures in a row do not.

    Args:
        number: of failures in a row that are excused.
    """

    def __init__(self, number: int = 1) -> None:
        self._number = number
        self._num_failed = 0

    def counts(self, held: bool) -> bool:
        """Return whether the next verdict counts."""
        self._num_failed = 0 if held else self._num_failed + 1
        return held or self._num_failed > self._number
