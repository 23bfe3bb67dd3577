"""LossScalingRelation: clipping and the step meet gradients in their own scale."""

from __future__ import annotations

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Role, Window
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
from traincheck_plugin.relations.lifecycle import rows_of_role
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.role_proposer import RoleProposer

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

    def proposer(self) -> Proposer:
        return RoleProposer(self.name, JUDGED)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_api(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        return f"{short(_api(params).api_full_name)} meets no gradients in a foreign scale"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(_api(params))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _api(params: tuple[Param, ...]) -> APIParam:
    if len(params) == 1 and isinstance(params[0], APIParam):
        return params[0]
    raise InvariantError(f"{LossScalingRelation.name} expects one APIParam, got {params!r}")


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
        marks = np.sort(np.concatenate([rows_of_role(window, "forward", "step"), rows]))
        found, holds, scalings = [], [], []
        judged = set(rows.tolist())
        for row in np.unique(marks).tolist():
            context = contexts[int(calls.context[row])]
            role = window.catalog.apis[int(calls.api[row])].role
            if role == "forward":
                self._is_half |= context.autocast == HALF and context.grad_enabled
            if row in judged:
                found.append(row)
                scalings.append(context.scaling)
                is_off = context.scaling == "disabled" and self._is_half
                holds.append(context.scaling != "scaled" and not is_off)
            if role == "step":
                self._is_half = False
        if not found:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            name = short(window.catalog.apis[int(calls.api[found[index]])].name)
            return _explain(name, scalings[index])

        return Examples.of_calls(
            window, np.array(found, np.int64), np.array(holds, np.bool_), explain
        )


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
