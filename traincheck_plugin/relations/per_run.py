"""What is known of one run, and not of the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from traincheck_plugin.catalog import Catalog

T = TypeVar("T")


class PerRun(Generic[T]):
    """Keeps something of the run whose windows come, and makes it anew for those of another.

    Codes of another run mean other things, and what came first in it comes first again.

    Args:
        make: makes it.
    """

    __slots__ = ("_catalog", "_kept", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._kept = make()
        self._catalog: Catalog | None = None

    def of(self, catalog: Catalog) -> T:
        """Return what is kept of the run whose windows have this *catalog*."""
        if catalog is not self._catalog:
            if self._catalog is not None:
                self._kept = self._make()
            self._catalog = catalog
        return self._kept
