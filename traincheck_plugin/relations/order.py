"""Labels whether calls alternate: the common ground of cover and lead."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from typing import Literal

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis
from traincheck_plugin.relations.base import Proposer
from traincheck_plugin.relations.lifecycle import AUTOGRAD_GRAD
from traincheck_plugin.vocabulary import Bool, Int64, Role

ORDERED: frozenset[Role] = frozenset(
    {
        "step",
        "zero_grad",
        "backward",
        "clip",
        "scaler",
        "scheduler",
        "mode",
        "forward",
        "data",
        "framework",
        "instrumented",
    }
)
"""Roles whose order says something about the training; other orders are plumbing."""

_NOTHING: Bool = np.empty(0, np.bool_)

MIN_CALLS = 3
"""An order of calls that happened less often says nothing."""


class Gaps:
    """Follows two kinds of calls and tells, between two calls of one, whether there was another.

    Calls are ordered by their *end*, so that a zero_grad and backward inside ``step(closure)``
    come before the step, as they do in a plain loop.

    Args:
        fence: name of the calls that end a gap.
        wanted: name of the calls that are looked for.
        restarts: where a gap begins anew: at the steps of optimizers, so that what happened before
            the previous one does not count, or at backwards.
        is_shared: whether a gap begins nowhere else, so that one *wanted* call serves several.
    """

    def __init__(
        self,
        fence: str,
        wanted: str,
        *,
        restarts: Literal["step", "backward"] | None = None,
        is_shared: bool = False,
    ) -> None:
        self._fence = fence
        self._wanted = wanted
        self._restarts = restarts
        self._is_shared = is_shared
        self._last_restart = -1
        self._last_fence = -1
        self._last_wanted = -1

    def observe(self, window: Window) -> tuple[Int64, Bool]:
        """Return the rows of the *fence* calls that end a gap, and whether the gap had a *wanted*.

        One that a *fence* call is made within counts: a hook may clip gradients in the backward.
        The first call of all ends no gap: what came before it may not have been observed.
        """
        calls = window.calls
        rows = window.rows_of_name(self._fence)
        ends = calls.end[rows]
        restarts = self._restarting(window)
        wanted_rows = window.rows_of_name(self._wanted)
        wanted = calls.end[wanted_rows]
        if not len(rows) and not len(wanted) and not len(restarts):
            return rows, _NOTHING
        if not len(rows):
            self._last_wanted = int(wanted[-1]) if len(wanted) else self._last_wanted
            self._last_restart = int(restarts[-1]) if len(restarts) else self._last_restart
            return rows, np.empty(0, np.bool_)
        starts = np.concatenate([[self._last_fence], ends[:-1]])
        # The last wanted call before each end, from this window or an earlier one.
        index = np.searchsorted(wanted, ends) - 1
        latest = np.where(
            index >= 0, wanted[np.maximum(index, 0)] if len(wanted) else -1, self._last_wanted
        )
        known = starts >= 0
        if self._restarts:
            before = np.concatenate([[self._last_restart], restarts])
            latest_restart = before[np.searchsorted(restarts, ends)]
            starts = latest_restart if self._is_shared else np.maximum(starts, latest_restart)
        following = np.searchsorted(wanted, ends)
        begins = np.append(calls.begin[wanted_rows], np.iinfo(np.int64).max)
        holds = (latest > starts) | (begins[following] < calls.begin[rows])
        self._last_fence = int(ends[-1])
        if len(wanted):
            self._last_wanted = int(wanted[-1])
        if len(restarts):
            self._last_restart = int(restarts[-1])
        return rows[known], holds[known]

    def _restarting(self, window: Window) -> Int64:
        """Return when what gaps restart at ended, but for what are the calls themselves."""
        calls, apis = window.calls, window.catalog.apis
        own = {self._fence, self._wanted, AUTOGRAD_GRAD}
        found = [
            calls.end[window.rows_of_api(code)]
            for code in window.api_codes
            if apis[code].role == self._restarts and own.isdisjoint(apis[code].names)
        ]
        return np.sort(np.concatenate(found)) if found else calls.end[:0]

    def forget(self) -> None:
        """Start anew after a stretch that was not observed."""
        self._last_fence = self._last_wanted = self._last_restart = -1


class PairProposer(Proposer):
    """Proposes every ordered pair of APIs that place a step in time."""

    def __init__(self, relation: str) -> None:
        self._relation = relation
        self._counts: dict[APIParam, int] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role in ORDERED:
                param = APIParam(api_full_name=api.general, role=api.role)
                number = len(window.rows_of_api(code))
                self._counts[param] = self._counts.get(param, 0) + number

    def hypotheses(self) -> Iterable[Hypothesis]:
        often = [param for param, number in self._counts.items() if number >= MIN_CALLS]
        return [Hypothesis(relation=self._relation, params=p) for p in permutations(often, 2)]
