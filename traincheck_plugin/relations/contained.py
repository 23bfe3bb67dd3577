"""Labels which calls happen inside others."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.naming import short


class ContainedCallMonitor(Monitor):
    """Holds at a call of A iff a call of B begins after it begins and ends before it ends.

    ``holds(a) = exists b: begin(a) < begin(b) and end(b) < end(a)``. Cannot see calls in other
    processes, and takes a call that another thread made meanwhile for a contained one.
    """

    def __init__(self, outer: APIParam, inner: APIParam) -> None:
        self._outer = outer
        self._inner = inner
        # A call is recorded in the window in which it ends: one that spans windows began before
        # calls that earlier windows held. The latest of those is enough to know.
        self._latest = -1

    def observe(self, window: Window) -> Examples:
        calls = window.calls
        inner = window.rows_of_name(self._inner.api_full_name)
        rows = window.rows_of_name(self._outer.api_full_name)
        # The latest begin of those that ended by then.
        latest = np.maximum.accumulate(np.append(self._latest, calls.begin[inner]))
        self._latest = int(latest[-1])
        if not len(rows):
            return NO_EXAMPLES
        ended = np.searchsorted(calls.end[inner], calls.end[rows])
        holds = latest[ended] > calls.begin[rows]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = window.catalog.apis[int(part.calls.api[row])].name
            return Explanation(
                message=f"{short(name)} did not call {short(self._inner.api_full_name)}"
            )

        return Examples.of_calls(window, rows, holds, explain)
