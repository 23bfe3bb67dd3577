"""LossScalingRelation: clipping and the step meet gradients in their own scale."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, single
from traincheck_plugin.relations.role_proposer import RoleProposer
from traincheck_plugin.vocabulary import NONE, Bool, Int64, Role

JUDGED: frozenset[Role] = frozenset({"clip", "step"})

HALF = "torch.float16"


class LossScalingRelation(Relation):
    """A meets no gradients that a gradient scaler has yet to unscale, nor any it failed to scale.

    ``forall calls a of A: scaling(a) != scaled``, and, where a forward since the last step ran in
    float16, ``scaling(a) != disabled``. Training without a scaler holds as well.

    Catches gradients that are clipped before they are unscaled, and a scaler that a misspelt
    setting switches off. Cannot see float16 that is trained without any scaler.
    """

    name = "LossScalingRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, JUDGED)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(single(self.name, params, APIParam))

    def describe(self, params: tuple[Param, ...]) -> str:
        name = short(single(self.name, params, APIParam).api_full_name)
        return f"{name} meets no gradients in a foreign scale"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(single(self.name, params, APIParam))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    def __init__(self, api: APIParam) -> None:
        self._api = api.api_full_name
        self._is_half = False

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._is_half = False
            return NO_EXAMPLES
        calls, contexts = window.calls, window.catalog.contexts
        rows = window.rows_of_name(self._api)
        is_half = self._was_half(window, rows, window.rows_of_role("step"))
        if not len(rows):
            return NO_EXAMPLES
        scaling = contexts.column("scaling")[calls.context[rows]]
        scaled, disabled = contexts.others.find("scaled"), contexts.others.find("disabled")
        holds = (scaling != scaled) & ~((scaling == disabled) & is_half)

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(calls.api[rows[index]])].name)
            return _explain(name, str(contexts.others[int(scaling[index])]))

        return Examples.of_calls(window, rows, holds, explain)

    def _was_half(self, window: Window, rows: Int64, steps: Int64) -> Bool:
        """Return whether a forward ran in float16 before each call and since the last step."""
        contexts = window.catalog.contexts
        autocast = contexts.column("autocast")
        half = contexts.others.find(HALF)
        if half == NONE:
            return np.zeros(len(rows), np.bool_)
        forwards = window.rows_of_role("forward")
        codes = window.calls.context[forwards]
        is_half = autocast[codes] == half
        halves = forwards[is_half & (contexts.column("grad_enabled")[codes] == 1)]
        # What was before the window comes first: a forward after the last step, or before it.
        halves = np.concatenate([[-1 if self._is_half else -3], halves])
        steps = np.concatenate([[-2], steps])
        self._is_half = bool(halves[-1] > steps[-1])
        last_half = halves[np.searchsorted(halves, rows) - 1]
        was_half: Bool = last_half > steps[np.searchsorted(steps, rows) - 1]
        return was_half


def _explain(name: str, scaling: str) -> Explanation:
    if scaling == "scaled":
        return Explanation(
            message=f"{name} met gradients that are multiplied by the scale of a GradScaler",
            cause=Cause(
                fact="gradients are scaled",
                subjects=("gradients",),
                text="the gradients are still scaled: unscale_ was not called before",
            ),
        )
    return Explanation(
        message=f"{name} met gradients of a float16 loss that was not scaled",
        cause=Cause(
            fact="GradScaler is disabled",
            subjects=("GradScaler",),
            text="the forward runs in float16 and the GradScaler is disabled: it does not scale "
            "the loss, and small gradients become 0",
        ),
    )
