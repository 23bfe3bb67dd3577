"""Finds the calls that make up training in a window, and the optimizers that they are about."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import NONE, Int32, Int64, Role, Window

SCALER_STEP = "torch.amp.GradScaler.step"


def rows_of_role(window: Window, *roles: Role) -> Int64:
    """Return the rows of the calls of these roles, in the order of their ends."""
    return np.sort(np.concatenate([window.rows_of_role(role) for role in roles]))


def completed(window: Window, rows: Int64) -> Int64:
    """Return those of *rows* whose calls raised nothing."""
    kept: Int64 = rows[window.calls.exception[rows] == NONE]
    return kept


def first_of_each(window: Window, rows: Int64) -> Int64:
    """Return the first of *rows* in each of the windows joined that has one."""
    if window.joint is None:
        return rows[:1]
    positions = window.position_of(rows)
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = positions[1:] != positions[:-1]
    return rows[is_first]


def last_of_each(window: Window, rows: Int64) -> Int64:
    """Return the last of *rows* in each of the windows joined that has one."""
    if window.joint is None:
        return rows[-1:]
    positions = window.position_of(rows)
    is_last = np.ones(len(rows), np.bool_)
    is_last[:-1] = positions[1:] != positions[:-1]
    return rows[is_last]


def skipped_steps(window: Window, steps: Int64) -> Int64:
    """Return the rows of a scaler's step in which none of the *steps* was made."""
    calls = window.calls
    scaled = window.rows_of_name(SCALER_STEP)
    if not len(scaled):
        return scaled
    return scaled[~np.isin(calls.call[scaled], calls.parent[steps])]


def previous(objects: Int32) -> Int64:
    """Return for each of some calls, by their objects, the one before it on its object.

    Returns:
        Indexes; `NONE` for the first on an object.
    """
    found = np.full(len(objects), NONE, np.int64)
    if len(objects) > 1:
        order = np.argsort(objects, kind="stable")
        is_same = objects[order[1:]] == objects[order[:-1]]
        found[order[1:][is_same]] = order[:-1][is_same]
    return found


def named_optimizer(window: Window, row: int) -> str:
    """Return the label of the optimizer that a call on something else is about, "" if unknown."""
    items = window.catalog.signature(int(window.calls.inputs[row]))
    return next((str(item.value) for item in items if item.path == "optimizer"), "")


def label(window: Window, row: int) -> str:
    """Return the label of the object that a call is on, "" if it has none."""
    code = int(window.calls.object[row])
    return window.catalog.objects[code] if code != NONE else ""


def is_placed(window: Window, row: int) -> bool:
    """Return whether a call says where in its schedule the scheduler is to be, or how it goes."""
    items = window.catalog.signature(int(window.calls.inputs[row]))
    return any(item.path in ("1", "epoch", "metrics") for item in items)


def factor(window: Window, row: int) -> float:
    """Return the constant that the loss of a backward was multiplied by; NaN if unknown."""
    items = window.catalog.signature(int(window.calls.inputs[row]))
    return next((float(str(item.value)) for item in items if item.path == "factor"), 1.0)
