"""ConsistentOutputRelation: a result is always of the same kind."""

from __future__ import annotations

from functools import partial

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import Cause, Explanation, Monitor, Proposer, Relation
from traincheck_plugin.relations.causes import frozen_parameters
from traincheck_plugin.relations.constants import ConstantMonitor, ConstantProposer
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair
from traincheck_plugin.vocabulary import Api, Item

ATTRIBUTES = ("dtype", "requires_grad")
"""The shape differs from batch to batch, and the device from machine to machine."""


class ConsistentOutputRelation(Relation):
    """An attribute of a result of A is always the same.

    ``forall calls a of A: attribute(result(a)[path]) = value``.

    Catches autocast that was configured and never entered: the model returns float32. Cannot see
    a wrong number.
    """

    name = "ConsistentOutputRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return ConstantProposer(self.name, "outputs", ATTRIBUTES, _is_claimed)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        api, constant = pair(self.name, params, APIParam, ConstantParam)
        explain = partial(_explain, api, constant)
        return ConstantMonitor("outputs", api, constant.value, explain)

    def describe(self, params: tuple[Param, ...]) -> str:
        api, constant = pair(self.name, params, APIParam, ConstantParam)
        return f"{result(api)} of {short(api.api_full_name)} has {api.attribute} {constant.value}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(pair(self.name, params, APIParam, ConstantParam)[0])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        api, _ = pair(self.name, params, APIParam, ConstantParam)
        return "info" if api.role == "function" else "warning"


def _is_claimed(api: Api, _: Item, attribute: str, value: object) -> bool:
    """Return whether it matters that a result is so: of functions, many compute no gradients."""
    return api.role != "function" or (attribute, value) != ("requires_grad", False)


def result(api: APIParam) -> str:
    """Return ``result`` or ``result `0.1```."""
    return f"result `{api.argument}`" if api.argument else "the result"


def _explain(
    api: APIParam, constant: ConstantParam, window: Window, row: int, actual: Item
) -> Explanation:
    name = short(window.catalog.apis[int(window.calls.api[row])].name)
    is_cut_off = api.attribute == "requires_grad" and constant.value is True
    return Explanation(
        message=f"{result(api)} of {name} has {api.attribute} {actual.get(api.attribute or '')}, "
        f"expected {constant.value}",
        cause=_cut_off(window, row) if is_cut_off else None,
    )


def _cut_off(window: Window, row: int) -> Cause:
    """Return why a result does not require a gradient."""
    name = short(window.catalog.apis[int(window.calls.api[row])].name)
    if not window.catalog.contexts[int(window.calls.context[row])].grad_enabled:
        return Cause(
            fact="ran without gradients",
            subjects=(name,),
            text=f"{name} ran under no_grad: backward does not reach what it computed",
        )
    return frozen_parameters(window) or Cause(
        fact="detached",
        subjects=("graph",),
        text=f"what {name} returned was detached from what computed it, by detach() or no_grad "
        "inside: backward does not reach it",
    )
