"""Which rows of a frame have a value that an invariant names, and which variables it speaks of."""

from __future__ import annotations

from typing import Any

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import ANY, VAR_TYPES, VarTypeParam
from traincheck_plugin.vocabulary import NONE, Array, Bool, GradState

# Looking a member of an enumeration up takes longer than comparing a small frame with it.
_NULL, _ZERO = int(GradState.NULL), int(GradState.ZERO)
_NON_ZERO, _NON_FINITE = int(GradState.NON_ZERO), int(GradState.NON_FINITE)


def matches(attribute: str, expected: Any, column: Array, before: Array | None = None) -> Bool:
    """Return which values of *column* are *expected*.

    Args:
        attribute: the attribute that the column holds.
        expected: a literal, None, ``non_zero``, ``not_null``, ``finite``, ``changed`` or `ANY`.
            For gradients None means cleared: absent or all zero, as `zero_grad` leaves either.
        column: values of one frame.
        before: values of the same variables in the frame that ``changed`` compares with.

    Raises:
        InvariantError: *expected* is nothing that the attribute can be.
    """
    if expected == ANY:
        return np.ones(column.shape, np.bool_)
    if expected == "changed" and before is not None:
        return np.asarray(column != before)
    if attribute == "grad":
        if expected is None:
            return np.asarray(column <= _ZERO)
        if expected == "non_zero":
            return np.asarray(column >= _NON_ZERO)
        if expected == "not_null":
            return np.asarray(column > _NULL)
        if expected == "finite":
            return np.asarray(column != _NON_FINITE)
    elif attribute == "optimizer":
        if expected == "not_null":
            return np.asarray(column != NONE)
    elif expected == "non_zero":
        return np.asarray(column != 0)
    elif isinstance(expected, bool | int | float):
        return np.asarray(column == expected)
    raise InvariantError(f"expected a value that {attribute!r} can have, got {expected!r}")


def is_about(window: Window, frame: Frame, param: VarTypeParam) -> bool:
    """Return whether *frame* shows the attribute of the type of variable of *param*."""
    kind = window.kind(frame)
    return (
        kind is not None and VAR_TYPES[kind] == param.var_type and param.attr_name in frame.columns
    )


def align(begin: Frame, end: Frame) -> tuple[Array, Array] | None:
    """Return rows of the two frames that show the same variables; None where all rows do."""
    if begin.variables is end.variables or np.array_equal(begin.variables, end.variables):
        return None
    _, first, second = np.intersect1d(begin.variables, end.variables, return_indices=True)
    return first, second
