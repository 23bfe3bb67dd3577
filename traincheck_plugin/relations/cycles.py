"""Labels what happens to variables between two calls on one object: a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, VarTypeParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.causes import accumulation, find_cause
from traincheck_plugin.relations.frames import is_backward, is_named
from traincheck_plugin.relations.lifecycle import previous
from traincheck_plugin.relations.moments import Moments, moments
from traincheck_plugin.relations.naming import short
from traincheck_plugin.vocabulary import NONE, Bool, Int32, Int64

MAX_CELLS = 1 << 20
"""Frames times variables that are looked at at once."""


class CycleMonitor(Monitor):
    """Holds at a call of A iff *some* / *every* selected variable had post_value in its cycle.

    The cycle of a call reaches from the end of the previous call on the same object to its own
    end, and a gradient that is to be cleared is looked for in every frame taken meanwhile. So it
    does not matter by what means, or in which order with other calls, that came about: `zero_grad`
    before the forward pass, after the step, or by hand. A gradient that is to be there is looked
    for at the end of the call, which may have computed it; before, it may be that of the last step.

    Judged are variables that were seen when a backward of the cycle began. A cycle without a
    backward is no example, and windows that sampling left out start the cycle anew. Nor need
    gradients be cleared before the first call on an object: what an earlier phase of the training
    left there is used once.
    """

    def __init__(self, api: APIParam, variables: VarTypeParam) -> None:
        self._api = api
        self._variables = variables
        # By variable code: whether the value was seen, and whether a backward began with it.
        self._seen = np.zeros(0, np.bool_)
        self._known = np.zeros(0, np.bool_)
        self._clears = variables.attr_name == "grad" and variables.post_value is None
        self._called: set[int] = set()

    def observe(self, window: Window) -> Examples:
        first = self._first_calls(window) if self._clears else []
        if not window.observed:
            self._seen[:] = False
            self._known[:] = False
            return NO_EXAMPLES
        shown = moments(window, self._variables)
        if not shown:
            return NO_EXAMPLES
        self._grow(len(window.catalog.variables))
        codes = shown[0].variables
        if any(part.variables is not codes for part in shown):
            codes = np.unique(np.concatenate([part.variables for part in shown]))
        positions = np.sort(np.concatenate([part.positions for part in shown]))
        size = max(1, MAX_CELLS // len(codes))
        found = [
            self._observe(window, shown, codes, positions[start : start + size])
            for start in range(0, len(positions), size)
        ]
        rows = np.concatenate([cycles.rows for cycles in found])
        if not len(rows):
            return NO_EXAMPLES
        holds = np.concatenate([cycles.holds for cycles in found])
        kept = np.arange(len(rows))
        if self._clears:
            kept = np.flatnonzero(holds | ~np.isin(rows, first))

        def explain(index: int) -> Explanation:
            number = int(kept[index])
            for cycles in found:
                if number < len(cycles.rows):
                    return self._explain(window, cycles, number)
                number -= len(cycles.rows)
            raise IndexError(index)

        return Examples.of_calls(window, rows[kept], holds[kept], explain)

    def _first_calls(self, window: Window) -> list[int]:
        """Return the calls of A that are the first ones on their objects."""
        rows = window.rows_of_name(self._api.api_full_name)
        objects = window.calls.object
        rows = rows[previous(objects[rows]) == NONE]
        first = [row for row in rows.tolist() if int(objects[row]) not in self._called]
        self._called.update(objects[rows].tolist())
        return first

    def _grow(self, size: int) -> None:
        missing = size - len(self._seen)
        if missing > 0:
            self._seen = np.append(self._seen, np.zeros(missing, np.bool_))
            self._known = np.append(self._known, np.zeros(missing, np.bool_))

    def _observe(
        self, window: Window, shown: Sequence[Moments], codes: Int32, positions: Int64
    ) -> _Cycles:
        """Return the cycles that end in the frames at *positions*: all in order that show them."""
        shape = len(positions), len(codes)
        seen, over = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        known = np.zeros(shape, np.bool_)
        rows = np.empty(len(positions), np.int64)
        named, backward = is_named(window, self._api.api_full_name), is_backward(window)
        param, num_frames = self._variables, sum(map(len, shown))
        for part in shown:
            some = slice(None)
            if len(positions) < num_frames:
                first, last = np.searchsorted(part.positions, (positions[0], positions[-1] + 1))
                some = slice(first, last)
            calls, is_begin = part.calls[some], part.is_begin[some]
            at = np.searchsorted(positions, part.positions[some])
            rows[at] = calls
            where: Any = at
            if part.variables is not codes:
                where = at[:, None], np.searchsorted(codes, part.variables)
            own = named[calls]
            is_end = own & ~is_begin
            counts = is_end if param.post_value == "not_null" else np.ones_like(is_end)
            seen[where] = part.matches(param.attr_name, param.post_value)[some] & counts[:, None]
            known[where] = (backward[calls] & is_begin & ~own)[:, None]
            if is_end.any() and (subject := part.select(param.where)) is not None:
                over[where] = subject[some] & is_end[:, None]
        # Of each variable the last frame so far that showed the value, that began a backward, and
        # that ended a cycle; 1 for what went before.
        numbers = np.arange(2, len(positions) + 2, dtype=np.int32)[:, None]
        last_seen = _last(seen, numbers, self._seen[codes])
        last_known = _last(known, numbers, self._known[codes])
        last_over = _last(over, numbers, np.zeros(len(codes), np.bool_))
        ends = np.flatnonzero(over.any(axis=1))
        judged = over[ends] & (last_known[ends + 1] > last_over[ends])
        ends, judged = ends[judged.any(axis=1)], judged[judged.any(axis=1)]
        did = judged & (last_seen[ends + 1] > last_over[ends])
        self._seen[codes] = last_seen[-1] > last_over[-1]
        self._known[codes] = last_known[-1] > last_over[-1]
        every = self._variables.quantifier == "every"
        holds: Bool = np.all(did == judged, axis=1) if every else np.any(did, axis=1)
        return _Cycles(
            codes=codes,
            rows=rows[ends],
            positions=positions[ends],
            judged=judged,
            did=did,
            holds=holds,
        )

    def _explain(self, window: Window, cycles: _Cycles, index: int) -> Explanation:
        frame = window.frames[int(cycles.positions[index])]
        order = np.argsort(cycles.codes)
        shown = order[np.searchsorted(cycles.codes, frame.variables, sorter=order)]
        did = cycles.did[index][shown]
        failing = cycles.judged[index][shown] & ~did
        part, row = window.at(int(cycles.rows[index]))
        name = short(window.catalog.apis[int(part.calls.api[row])].name)
        count, total = int(failing.sum()), int(failing.sum() + did.sum())
        if self._clears:
            return Explanation(
                message=f"the gradients of {count} of {total} parameters were never cleared "
                f"between two calls of {name}",
                cause=accumulation(part, row, frame, failing),
            )
        happened = (
            f"{count} of {total} parameters that {name} holds had no gradient"
            if self._variables.attr_name == "grad"
            else f"{self._variables.attr_name} of {count} of {total} variables never was "
            f"{self._variables.post_value} before {name}"
        )
        return Explanation(message=happened, cause=find_cause(part, row, frame, failing, did))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cycles:
    """Cycles that ended: a row for each.

    Attributes:
        codes: the variables that the masks are of.
        rows: the calls that ended them.
        positions: of the frames at the ends of those.
        judged: variables that the rule speaks of.
        did: those that had the value.
        holds: whether the examples hold.
    """

    codes: Int32
    rows: Int64
    positions: Int64
    judged: Bool
    did: Bool
    holds: Bool


def _last(mask: Bool, numbers: Int32, before: Bool) -> Int32:
    """Return the greatest number so far of the rows in which each column is set.

    The first row is what there was before any.
    """
    found = np.empty((len(mask) + 1, mask.shape[1]), np.int32)
    found[0] = before
    np.multiply(mask, numbers, out=found[1:])
    np.maximum.accumulate(found, axis=0, out=found)
    return found
