"""Finds the calls that make up training in a window, and the optimizers that they are about."""

from __future__ import annotations

from collections import Counter

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.vocabulary import NONE, Bool, Int32, Int64, Role

SCALER_STEP = "torch.amp.GradScaler.step"

AUTOGRAD_GRAD = "torch.autograd.grad"
"""Goes backward, and returns the gradients instead of adding them to those of parameters."""


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


class Patience:
    """Excuses the first failures in a row on each object.

    Args:
        share: so many of them, as a part of all that held before; one in any case.
        excuses_first: whether those are excused before which nothing held: what goes wrong now and
            then hardly does so at first.
    """

    def __init__(self, share: float = 0.0, *, excuses_first: bool = True) -> None:
        self._share = share
        self._excuses_first = excuses_first
        # By object: failures in a row up to now, where there is one, and all that held.
        self._failed: dict[int, int] = {}
        self._held: Counter[int] = Counter()

    def forget(self) -> None:
        """Start anew after a stretch that was not observed."""
        self._failed.clear()

    def kept(self, objects: Int32, holds: Bool) -> Bool:
        """Return which examples are to be judged.

        Args:
            objects: that they are about, in order.
            holds: whether they hold.
        """
        if not self._failed and holds.all():
            if self._share or not self._excuses_first:
                self._held.update(objects.tolist())
            return holds
        kept = holds.copy()
        for index, target in enumerate(objects.tolist()):
            if holds[index]:
                self._failed.pop(target, None)
                self._held[target] += 1
            else:
                self._failed[target] = self._failed.get(target, 0) + 1
                held = self._held[target]
                is_excused = self._failed[target] <= max(1.0, self._share * held)
                kept[index] = not is_excused or not (held or self._excuses_first)
        return kept


class Backwards:
    """Tells which steps of an optimizer a backward led to."""

    def __init__(self) -> None:
        self._last_backward = NONE
        self._last_step: dict[int, int] = {}

    def led_to(self, window: Window, steps: Int64) -> Bool:
        """Return for each of the steps of a window whether there was one since the last step.

        Args:
            window: the next one.
            steps: rows of all steps that are followed, in order.
        """
        calls = window.calls
        ends, objects = calls.end[steps], calls.object[steps]
        backwards = calls.end[window.rows_of_role("backward")]
        backwards = np.concatenate([[self._last_backward], backwards])
        latest = backwards[np.searchsorted(backwards, ends) - 1]
        last = previous(objects)
        before = np.where(last == NONE, NONE, ends[last])
        for index in np.flatnonzero(last == NONE).tolist():
            before[index] = self._last_step.get(int(objects[index]), NONE)
        self._last_backward = int(backwards[-1])
        self._last_step.update(zip(objects.tolist(), ends.tolist(), strict=True))
        led: Bool = latest > before
        return led


class Searches:
    """Knows the optimizers that go backward several times in a step, from the first time on."""

    def __init__(self) -> None:
        # When the last two backward passes began and ended.
        self._begins: Int64 = np.full(2, NONE, np.int64)
        self._ends: Int64 = np.full(2, NONE, np.int64)
        self._since: dict[int, int] = {}

    def observe(self, window: Window, steps: Int64) -> None:
        """Look at the steps of the next window."""
        calls = window.calls
        rows = window.rows_of_role("backward")
        if len(rows):
            self._begins = np.concatenate([self._begins[-2:], calls.begin[rows]])
            self._ends = np.concatenate([self._ends[-2:], calls.end[rows]])
        # Most often the last but one of all began before any of the steps.
        if not len(steps) or self._begins[-2] < calls.begin[steps].min():
            return
        # The last but one that ended before a step did is in it if it began after the step.
        last = np.searchsorted(self._ends, calls.end[steps]) - 1
        searching = self._begins[np.maximum(last - 1, 0)] > calls.begin[steps]
        for row in steps[searching].tolist():
            self._since.setdefault(int(calls.object[row]), int(calls.end[row]))

    def at(self, window: Window, rows: Int64) -> Bool:
        """Return for each of some steps whether its optimizer was known to search by then."""
        calls = window.calls
        known = np.zeros(len(rows), np.bool_)
        for target, since in self._since.items():
            known |= (calls.object[rows] == target) & (calls.end[rows] >= since)
        return known


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
    return float(_noted(window, row, "factor") or 1.0)


def accumulates(window: Window, row: int) -> int:
    """Return how many micro-batches what calls a backward is set to accumulate; 0 if unknown."""
    return int(_noted(window, row, "accumulates") or 0)


def _noted(window: Window, row: int, path: str) -> str:
    """Return what is noted at *path* among the arguments of a call; "" where nothing is."""
    items = window.catalog.signature(int(window.calls.inputs[row]))
    return next((str(item.value) for item in items if item.path == path), "")


def tells(window: Window, rows: Int64, path: str) -> Bool:
    """Return which calls have something at *path* noted among their arguments."""
    inputs = window.calls.inputs[rows]
    signature = window.catalog.signature
    codes = [c for c in set(inputs.tolist()) if any(i.path == path for i in signature(c))]
    found: Bool = np.isin(inputs, codes) if codes else np.zeros(len(rows), np.bool_)
    return found
