"""Finds what a window shows more than once, and what a run did not show before."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE, Array, Int64

Row = tuple[int, ...]


class Distinct:
    """Remembers combinations of codes of one catalog: a run repeats the same ones in every step."""

    def __init__(self) -> None:
        self._seen: PerRun[set[Row]] = PerRun(set)

    def new(self, window: Window, *columns: str) -> list[Row]:
        """Return what is new in *columns* of the calls, each once.

        The order is that of the windows, however they are joined, and a fixed one in each.
        """
        seen = self._seen.of(window.catalog)
        found, first, _ = _unique([getattr(window.calls, name) for name in columns])
        new = [
            (position, row)
            for position, row in zip(window.position_of(first).tolist(), found, strict=True)
            if row not in seen
        ]
        seen.update(row for _, row in new)
        return [row for _, row in sorted(new)]


def signatures(window: Window, name: str, *columns: str) -> tuple[Int64, list[Row], Int64]:
    """Return what calls that returned, of an API that answers to *name*, have in *columns*.

    Returns:
        The rows of the calls, the distinct combinations, and which of them each call has.
    """
    key = signatures, name, columns
    found: tuple[Int64, list[Row], Int64] | None = window.cache.get(key)
    if found is None:
        rows = window.rows_of_name(name)
        distinct, _, which = _unique([getattr(window.calls, column)[rows] for column in columns])
        found = window.cache[key] = rows, distinct, which
    return found


def _unique(columns: list[Array]) -> tuple[list[Row], Int64, Int64]:
    """Return the distinct rows of *columns*, ascending, where each is first, and which each is."""
    key = columns[0].astype(np.int64)
    for column in columns[1:]:
        key = key * (int(column.max(initial=0)) + 2) + column - NONE
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    rows = list(zip(*(column[first].tolist() for column in columns), strict=True))
    return rows, first, which
