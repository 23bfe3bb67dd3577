"""Finds the variables that a rule names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.invariants.model import VAR_TYPES
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import Bool, Variable


@dataclass(slots=True)
class _Found:
    """By code, which variables are named."""

    is_named: Bool = field(default_factory=lambda: np.zeros(0, np.bool_))


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
        self._found = PerRun(_Found)

    def among(self, catalog: Catalog) -> Bool:
        """Return by code whether a variable is one of them."""
        found = self._found.of(catalog)
        known = len(found.is_named)
        if known < len(catalog.variables):
            new = [catalog.variables[code] for code in range(known, len(catalog.variables))]
            are_named = [v.kind == self._kind and self._name_of(v) in self._names for v in new]
            found.is_named = np.append(found.is_named, np.array(are_named, np.bool_))
        return found.is_named
