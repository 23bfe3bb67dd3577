"""Labels what happens to variables between two calls on one object: a cycle."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import Bool, Frame, Window
from traincheck_plugin.invariants.model import APIParam, VarTypeParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.causes import accumulation, find_cause
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.values import is_about, matches, select


class CycleMonitor(Monitor):
    """Holds at a call of A iff *some* / *every* selected variable had post_value in its cycle.

    The cycle of a call reaches from the end of the previous call on the same object to its own
    end, and the value is looked for in every frame taken meanwhile. So it does not matter by what
    means, or in which order with other calls, the value came about: `zero_grad` before the forward
    pass, after the step, or by hand.

    Judged are variables that were seen when a backward of the cycle began. A cycle without a
    backward is no example, and windows that sampling left out start the cycle anew.
    """

    def __init__(self, api: APIParam, variables: VarTypeParam) -> None:
        self._api = api
        self._variables = variables
        # By variable code: whether the value was seen, and whether a backward began with it.
        self._seen = np.zeros(0, np.bool_)
        self._known = np.zeros(0, np.bool_)

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._seen[:] = False
            self._known[:] = False
            return NO_EXAMPLES
        catalog, calls = window.catalog, window.calls
        self._grow(len(catalog.variables))
        ends = {
            int(calls.call[row]): int(row) for row in window.rows_of_name(self._api.api_full_name)
        }
        rows, holds, failures = [], [], []
        for frame in window.frames:
            if not is_about(window, frame, self._variables):
                continue
            codes = frame.variables
            column = frame.columns[self._variables.attr_name]
            self._seen[codes] |= matches(
                self._variables.attr_name, self._variables.post_value, column
            )
            row = ends.get(frame.call)
            if row is None:
                if frame.phase == "begin" and self._is_backward(window, frame):
                    self._known[codes] = True
            elif frame.phase == "end":
                subject = select(self._variables, frame, int(calls.object[row]))
                if subject is None:
                    continue
                judged = subject & self._known[codes]
                did = judged & self._seen[codes]
                # The object's cycle is over for all that it holds.
                self._seen[codes[subject]] = False
                self._known[codes[subject]] = False
                if not judged.any():
                    continue
                every = self._variables.quantifier == "every"
                rows.append(row)
                holds.append(bool((did == judged).all() if every else did.any()))
                failures.append((frame, judged & ~did, did))
        if not rows:
            return NO_EXAMPLES
        where = np.array(rows, np.int64)

        def explain(index: int) -> Explanation:
            return self._explain(window, int(where[index]), *failures[index])

        return Examples.of_calls(window, where, np.array(holds, np.bool_), explain)

    def _grow(self, size: int) -> None:
        missing = size - len(self._seen)
        if missing > 0:
            self._seen = np.append(self._seen, np.zeros(missing, np.bool_))
            self._known = np.append(self._known, np.zeros(missing, np.bool_))

    def _is_backward(self, window: Window, frame: Frame) -> bool:
        row = window.row_of_call.get(frame.call)
        if row is None:
            return False
        return window.catalog.apis[int(window.calls.api[row])].role == "backward"

    def _explain(
        self, window: Window, row: int, frame: Frame, failing: Bool, did: Bool
    ) -> Explanation:
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        count, total = int(failing.sum()), int(failing.sum() + did.sum())
        if self._variables.attr_name == "grad" and self._variables.post_value is None:
            return Explanation(
                message=f"the gradients of {count} of {total} parameters were never cleared "
                f"between two calls of {name}",
                cause=accumulation(window, row, frame, failing),
            )
        happened = (
            f"{count} of {total} parameters that {name} holds had no gradient"
            if self._variables.attr_name == "grad"
            else f"{self._variables.attr_name} of {count} of {total} variables never was "
            f"{self._variables.post_value} before {name}"
        )
        return Explanation(message=happened, cause=find_cause(window, row, frame, failing, did))
