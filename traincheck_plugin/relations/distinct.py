"""Finds what a run did not show before."""

from __future__ import annotations

from traincheck_plugin.events import Array, Catalog


class Distinct:
    """Remembers combinations of codes of one catalog: a run repeats the same ones in every step."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._seen: set[tuple[int, ...]] = set()

    def new(self, catalog: Catalog, *columns: Array) -> list[tuple[int, ...]]:
        """Return the rows of *columns* that are new, each once, in a fixed order."""
        if catalog is not self._catalog:
            self._catalog = catalog
            self._seen = set()
        rows = set(zip(*(column.tolist() for column in columns), strict=True)) - self._seen
        self._seen |= rows
        return sorted(rows)
