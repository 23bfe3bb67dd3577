"""ConsistentArgumentRelation: an argument is always of the same kind."""

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

ATTRIBUTES = ("requires_grad", "ndim", "value")
"""Where autocast is at work, the dtype of what is computed tells the same as that of a result."""

LAYERS = "torch.nn."
"""What networks and losses are made of. How a script reshapes, copies and prints tensors with the
rest of torch may change at any time, and means little."""

PARAMETER = "torch.nn.Parameter"


class ConsistentArgumentRelation(Relation):
    """An attribute of an argument of A is always the same.

    ``forall calls a of A: attribute(argument(a)[path]) = value``, where there is an argument at
    *path*; one that is None has no attributes. A is a model, or a function of `torch.nn`.

    Catches dropout that stays on in evaluation, features that are detached on their way to a head,
    predictions and targets that are broadcast against each other because one has a dimension more.
    Cannot see that the values are wrong.
    """

    name = "ConsistentArgumentRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return ConstantProposer(self.name, "inputs", ATTRIBUTES, _is_claimed)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        api, constant = pair(self.name, params, APIParam, ConstantParam)
        return ConstantMonitor("inputs", api, constant.value, partial(_explain, api, constant))

    def describe(self, params: tuple[Param, ...]) -> str:
        api, constant = pair(self.name, params, APIParam, ConstantParam)
        return f"{_subject(api)} {_kind(api, constant.value)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(pair(self.name, params, APIParam, ConstantParam)[0])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        _, constant = pair(self.name, params, APIParam, ConstantParam)
        # Texts are settings: trainers choose a reduction by how they count micro-batches.
        return "info" if isinstance(constant.value, str) else "warning"

    def regime(self, params: tuple[Param, ...]) -> tuple[str, ...]:
        # Where no graph is built, nothing requires a gradient: a layer may be computed twice.
        return ("stage", "grad_enabled")


def _is_claimed(api: Api, item: Item, attribute: str, value: object) -> bool:
    """Return whether it matters that an argument is so; other relations tell of parameters."""
    is_layer = api.role == "function" and api.name.startswith(LAYERS)
    computes = is_layer or api.role in ("forward", "instrumented")
    return computes and item.type != PARAMETER and (attribute, value) != ("requires_grad", False)


def _subject(api: APIParam) -> str:
    return f"argument `{api.argument}` of {short(api.api_full_name)}"


def _kind(api: APIParam, value: object) -> str:
    """Return what is said of an argument with this value of the attribute."""
    if api.attribute == "requires_grad":
        return "requires a gradient" if value else "requires no gradient"
    if api.attribute == "ndim":
        return f"has {value} dimension{'s' if value != 1 else ''}"
    return f"is {value!r}"


def _explain(
    api: APIParam, constant: ConstantParam, window: Window, row: int, actual: Item
) -> Explanation:
    name = short(window.catalog.apis[int(window.calls.api[row])].name)
    value = actual.get(api.attribute or "")
    is_absent = value is None
    seen = "is None" if is_absent else _kind(api, value)
    expected = _kind(api, constant.value)
    cause = None
    if api.attribute == "requires_grad" and constant.value is True and not is_absent:
        cause = _cut_off(window, row, name)
    return Explanation(
        message=f"argument `{api.argument}` of {name} {seen}; in the reference it {expected}",
        cause=cause
        or Cause(
            fact="another argument",
            subjects=(name, str(api.argument)),
            text=f"{name} is not called as in the reference: `{api.argument}` {seen}",
        ),
    )


def _cut_off(window: Window, row: int, name: str) -> Cause | None:
    """Return why an argument does not require a gradient."""
    if not window.catalog.contexts[int(window.calls.context[row])].grad_enabled:
        return None
    return frozen_parameters(window) or Cause(
        fact="detached",
        subjects=("graph",),
        text=f"what {name} is given was detached from what computed it, by detach(), item() or "
        "no_grad: backward goes no further",
    )
