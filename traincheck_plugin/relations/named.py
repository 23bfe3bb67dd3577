"""Finds the variables that a rule names."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.invariants.model import VAR_TYPES
from traincheck_plugin.vocabulary import Bool, Variable


class Named:
    """Tells of the variables of a catalog that grows whether they are named.

    Args:
        var_type: of the variables.
        names: of them.
        name_of: gives the name of one.
    """

    def __init__(
        self, var_type: str, names: Iterable[str], name_of: Callable[[Variable], str]
    ) -> None:
        self._kind = next(kind for kind, name in VAR_TYPES.items() if name == var_type)
        self._names = frozenset(names)
        self._name_of = name_of
        self._catalog: Catalog | None = None
        self._is_named = np.zeros(0, np.bool_)

    def among(self, catalog: Catalog) -> Bool:
        """Return by code whether a variable is one of them."""
        if catalog is not self._catalog:
            self._catalog = catalog
            self._is_named = np.zeros(0, np.bool_)
        known = len(self._is_named)
        if known < len(catalog.variables):
            new = [catalog.variables[code] for code in range(known, len(catalog.variables))]
            are_named = [v.kind == self._kind and self._name_of(v) in self._names for v in new]
            self._is_named = np.append(self._is_named, np.array(are_named, np.bool_))
        return self._is_named
