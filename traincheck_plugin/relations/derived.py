"""Attributes of variables that follow from recorded ones.

A rule may name them like any other. Each is a column over the variables of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from traincheck_plugin.events import (
    NONE,
    RUN_WITHOUT_GRADIENTS,
    Array,
    Bool,
    Catalog,
    Frame,
    GradState,
    Int64,
    VariableKind,
    Window,
)

_NULL = int(GradState.NULL)


class Modules:
    """Numbers the modules that own variables, in a catalog that grows."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._numbers: dict[tuple[str, str], int] = {}
        self._module_of: Int64 = np.zeros(0, np.int64)

    def of(self, catalog: Catalog, variables: Array) -> Int64:
        """Return the number of the module that owns each of *variables*."""
        if catalog is not self._catalog:
            self._catalog, self._numbers = catalog, {}
            self._module_of = np.zeros(0, np.int64)
        known = len(self._module_of)
        if known < len(catalog.variables):
            new = []
            for code in range(known, len(catalog.variables)):
                variable = catalog.variables[code]
                key = (variable.owner, variable.name.rpartition(".")[0])
                new.append(self._numbers.setdefault(key, len(self._numbers)))
            self._module_of = np.append(self._module_of, np.array(new, np.int64))
        numbers: Int64 = self._module_of[variables]
        return numbers


@dataclass(frozen=True, slots=True)
class _Derived:
    """How a column follows.

    Attributes:
        kind: of the variables.
        needs: recorded attributes of parameters that it follows from.
        column: gives it for a frame at a call (a row of the window).
    """

    kind: VariableKind
    needs: tuple[str, ...]
    column: Callable[[Window, int, Frame, Modules], Array | None]


def _used(window: Window, row: int, frame: Frame, modules: Modules) -> Array:
    return np.asarray(frame.columns["in_model"] | (frame.columns["grad"] > _NULL))


def _accounted(window: Window, row: int, frame: Frame, modules: Modules) -> Array:
    columns = frame.columns
    return np.asarray(
        (columns["grad"] <= _NULL) | columns["in_model"] | (columns["optimizer"] != NONE)
    )


def _module_held(window: Window, row: int, frame: Frame, modules: Modules) -> Array:
    module_of = modules.of(window.catalog, frame.variables)
    held = frame.columns["optimizer"] != NONE
    siblings: Bool = np.isin(module_of, module_of[held])
    return siblings


def _beside_frozen(window: Window, row: int, frame: Frame, modules: Modules) -> Array:
    columns = frame.columns
    owners = window.catalog.owner_of(frame.variables)
    idle = (columns["optimizer"] != NONE) & ~columns["requires_grad"]
    beside: Bool = np.isin(owners, owners[idle]) & (columns["grad"] > _NULL)
    return beside


def _is_first(window: Window, row: int, frame: Frame, modules: Modules) -> Array:
    columns = frame.columns
    ran = columns["ran"]
    trained = (columns["optimizer"] == window.calls.object[row]) & columns["requires_grad"]
    candidates: Bool = trained & (ran >= 0)
    if candidates.any():
        candidates &= ran == ran[candidates].min()
    return candidates


def _ran_with_gradients(window: Window, row: int, frame: Frame, modules: Modules) -> Array:
    return np.asarray(frame.columns["ran"] != RUN_WITHOUT_GRADIENTS)


def _learns(window: Window, row: int, frame: Frame, modules: Modules) -> Array | None:
    """Tell of modules whether they are part of a model that an optimizer trains."""
    shown = next(
        (
            other
            for other in window.frames_of_call.get(int(window.calls.call[row]), ())
            if other.phase == frame.phase and {"optimizer", "requires_grad"} <= set(other.columns)
        ),
        None,
    )
    if shown is None:
        return None
    columns, variables = shown.columns, window.catalog.variables
    trained: Bool = (columns["optimizer"] != NONE) & columns["requires_grad"]
    owners = {variables[int(code)].owner for code in shown.variables[trained]}
    return np.array([variables[int(code)].owner in owners for code in frame.variables], np.bool_)


DERIVED: Mapping[str, _Derived] = {
    "used": _Derived("parameter", ("in_model", "grad"), _used),
    "accounted": _Derived("parameter", ("in_model", "grad", "optimizer"), _accounted),
    "module_held": _Derived("parameter", ("optimizer",), _module_held),
    "beside_frozen": _Derived("parameter", ("requires_grad", "grad", "optimizer"), _beside_frozen),
    "is_first": _Derived("parameter", ("ran", "requires_grad", "optimizer"), _is_first),
    "ran_with_gradients": _Derived("parameter", ("ran",), _ran_with_gradients),
    "learns": _Derived("module", ("requires_grad", "optimizer"), _learns),
}
"""By name.

used: a model that ran has the parameter, or it has a gradient. accounted: it has no gradient, or
belongs to a model that ran or to an optimizer. module_held: an optimizer holds it or another
parameter of its module. beside_frozen: it has a gradient, and an optimizer holds parameters of its
model that are frozen. is_first: its module ran first of all that the optimizer trains.
ran_with_gradients: its module did not run under `no_grad` only. learns: the module is part of a
model of which an optimizer trains something.
"""


def extended(
    window: Window, row: int, frame: Frame, names: Iterable[str], modules: Modules
) -> Frame | None:
    """Return *frame* with the derived columns among *names*; None where it cannot tell.

    Args:
        window: where it happened.
        row: the call at which the frame was taken.
        frame: of variables of one kind.
        names: of attributes, recorded and derived.
        modules: of the catalog of the window.
    """
    columns = dict(frame.columns)
    for name in names:
        derived = DERIVED.get(name)
        if derived is None or name in columns:
            continue
        if derived.kind == "parameter" and not columns.keys() >= set(derived.needs):
            return None
        column = derived.column(window, row, frame, modules)
        if column is None:
            return None
        columns[name] = column
    return replace(frame, columns=columns)


def needed(names: Iterable[str]) -> set[tuple[VariableKind, str]]:
    """Return the recorded attributes that the derived ones among *names* follow from."""
    return {
        ("parameter", attribute)
        for name in names
        if name in DERIVED
        for attribute in DERIVED[name].needs
    }
