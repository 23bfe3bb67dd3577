"""FunctionCoverRelation: what must have happened before a call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    Cause,
    Examples,
    Explanation,
    Monitor,
    Place,
    Proposer,
    Relation,
    no_explanation,
)
from traincheck_plugin.relations.frames import is_backward
from traincheck_plugin.relations.lifecycle import AUTOGRAD_GRAD, completed, tells
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.order import Gaps, PairProposer
from traincheck_plugin.relations.params import api_plan, pair
from traincheck_plugin.vocabulary import NONE, Array

TELLING = frozenset(
    {("backward", "clip"), ("scaler", "clip"), ("clip", "step"), ("forward", "backward")}
)
"""Roles of what must come first, and of what it must come before, where no state tells as much:
that gradients are clipped too early or too late, or those of one forward are added up twice."""


class FunctionCoverRelation(Relation):
    """Every call of B was preceded by a call of A since the previous B and the previous step.

    ``forall consecutive b1, b2 of B: exists a of A: max(end(b1), end(s)) < end(a) < end(b2)``, with
    s the last optimizer step before b2, unless A or B is the step itself. Where A clips gradients
    and B steps, only the last backward counts as s: what is clipped before it, or after the step,
    is not what the step uses. Where B clips gradients, those of one backward may be clipped in
    several parts: only s counts. One with an infinite limit clips nothing. A failure is then an
    example only if the next step or backward is a backward, and is told there: one loss may be that
    of several optimizers, each of which clips and steps, and a trainer that only feeds a model with
    data clips gradients that are not there.

    Catches a `zero_grad` that was dropped from the loop, gradients that are clipped before they are
    unscaled or after the step, and a loss that goes backward twice. Cannot see that the call had no
    effect.
    """

    name = "FunctionCoverRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return PairProposer(self.name)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        before, call = pair(self.name, params, APIParam, APIParam)
        return (_Clips if call.role == "clip" else _Monitor)(before, call)

    def describe(self, params: tuple[Param, ...]) -> str:
        before, call = pair(self.name, params, APIParam, APIParam)
        return f"{short(before.api_full_name)} is called before each {short(call.api_full_name)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*pair(self.name, params, APIParam, APIParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        # An order is a means; whether the state came out right is judged by other relations.
        before, call = pair(self.name, params, APIParam, APIParam)
        is_telling = (before.role, call.role) in TELLING and call.api_full_name != AUTOGRAD_GRAD
        return "warning" if is_telling else "info"


class _Monitor(Monitor):
    def __init__(self, before: APIParam, call: APIParam) -> None:
        self._before, self._call = before, call
        self._roles = before.role, call.role
        # What a step uses is what the last backward left.
        is_of_backward = self._roles == ("clip", "step")
        self._since = "since the last backward" if is_of_backward else "in this step"
        self._gaps = Gaps(
            call.api_full_name,
            before.api_full_name,
            restarts="backward" if is_of_backward else "step",
            is_shared=is_of_backward or call.role == "clip",
        )

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._gaps.forget()
        rows, holds = self._gaps.observe(window)

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            return self._explain(window.catalog.apis[int(part.calls.api[row])].name)

        return Examples.of_calls(window, rows, holds, explain)

    def _explain(self, name: str) -> Explanation:
        return Explanation(
            message=f"{short(name)} was called and no "
            f"{short(self._before.api_full_name)} had come before it {self._since}",
            cause=self._cause(),
        )

    def _cause(self) -> Cause | None:
        if self._roles in (("clip", "step"), ("backward", "clip")):
            is_clip = self._roles[0] == "clip"
            where = "after the step or before the backward" + ", or not at all" * is_clip
            name = short((self._before if is_clip else self._call).api_full_name)
            return Cause(
                fact="gradients are not clipped",
                subjects=(name,),
                text=f"{name} is called {where}: the step uses the gradients as they are",
            )
        if self._roles == ("forward", "backward"):
            return Cause(
                fact="several backwards for one forward",
                subjects=("backward",),
                text="backward goes again through what one forward computed: its gradients are "
                "added up more than once",
            )
        return None


class _Clips(_Monitor):
    """Waits with a clip that fails for what follows it: a backward, or a step that uses it."""

    def __init__(self, before: APIParam, clip: APIParam) -> None:
        super().__init__(before, clip)
        self._waiting: list[Place] = []

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._gaps.forget()
            self._waiting.clear()
        rows, holds = self._gaps.observe(window)
        is_limited = ~tells(window, rows, "limit")
        rows, holds = rows[is_limited], holds[is_limited]
        if holds.all() and not self._waiting:
            return Examples.of_calls(window, rows, holds, no_explanation)
        calls = window.calls
        backwards = is_backward(window)
        steps = completed(window, window.rows_of_role("step"))
        events = np.sort(np.concatenate([np.flatnonzero(backwards[:-1]), steps]))
        failing = [(NONE, clip) for clip in self._waiting]
        failing += [(row, Place.of(window, row)) for row in rows[~holds].tolist()]
        following = np.searchsorted(events, [row for row, _ in failing]).tolist()
        self._waiting = [
            clip for (_, clip), at in zip(failing, following, strict=True) if at == len(events)
        ]
        told = [
            (events[at], clip)
            for (_, clip), at in zip(failing, following, strict=True)
            if at < len(events) and backwards[events[at]]
        ]
        held = rows[holds]
        clips = [clip for _, clip in told]
        begins = np.append(calls.begin[held], [clip.sequence for clip in clips]).astype(np.int64)
        until = np.append(held, [row for row, _ in told]).astype(np.int64)
        position = window.position_of(until)
        order = np.lexsort((begins, position))

        def ordered(of_held: Array, of_clips: Sequence[int]) -> Array:
            return np.append(of_held, np.array(of_clips, of_held.dtype))[order]

        return Examples(
            holds=ordered(np.ones(len(held), np.bool_), [False] * len(clips)),
            context=ordered(calls.context[held], [clip.context for clip in clips]),
            source=ordered(calls.source[held], [clip.source for clip in clips]),
            sequence=begins[order],
            time_ns=ordered(calls.end_ns[held], [clip.time_ns for clip in clips]),
            explain=lambda _: self._explain(self._call.api_full_name),
            position=None if window.joint is None else position[order],
        )
