"""ConsistentOutputRelation: a result is always of the same kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from traincheck_plugin.events import NONE, Window
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
)
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.api_names import ApiNames
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.causes import frozen_parameters
from traincheck_plugin.relations.distinct import Distinct, signatures
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair

ATTRIBUTES = ("dtype", "requires_grad")
"""The shape differs from batch to batch, and the device from machine to machine."""

MAX_VALUES = 3
"""A result that takes more values than this is no constant under any condition."""


class ConsistentOutputRelation(Relation):
    """An attribute of a result of A is always the same.

    ``forall calls a of A: attribute(result(a)[path]) = value``.

    Catches autocast that was configured and never entered: the model returns float32. Cannot see
    a wrong number.
    """

    name = "ConsistentOutputRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*pair(self.name, params, APIParam, ConstantParam))

    def describe(self, params: tuple[Param, ...]) -> str:
        api, constant = pair(self.name, params, APIParam, ConstantParam)
        return f"{result(api)} of {short(api.api_full_name)} has {api.attribute} {constant.value}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(pair(self.name, params, APIParam, ConstantParam)[0])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        api, _ = pair(self.name, params, APIParam, ConstantParam)
        return "info" if api.role == "function" else "warning"


def result(api: APIParam) -> str:
    """Return ``result`` or ``result `0.1```."""
    return f"result `{api.argument}`" if api.argument else "the result"


class _Monitor(Monitor):
    def __init__(self, api: APIParam, constant: ConstantParam) -> None:
        self._api = api
        self._value = constant.value

    def _actual(self, window: Window, code: int) -> Any:
        """Return the attribute in the results summarised by *code*; None where there is none."""
        for item in window.catalog.signature(code):
            if item.path == self._api.argument:
                return item.get(self._api.attribute or "")
        return None

    def observe(self, window: Window) -> Examples:
        rows, distinct, which = signatures(window, self._api.api_full_name, "outputs")
        if not len(rows):
            return NO_EXAMPLES
        actual = [self._actual(window, code) for (code,) in distinct]
        known = np.array([value is not None for value in actual])[which]
        if not known.any():
            return NO_EXAMPLES
        holds = np.array([value == self._value for value in actual])[which][known]
        rows, seen = rows[known], which[known]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = short(window.catalog.apis[int(part.calls.api[row])].name)
            return Explanation(
                message=f"{result(self._api)} of {name} has {self._api.attribute} "
                f"{actual[seen[index]]}, expected {self._value}",
                cause=_cut_off(part, row)
                if self._api.attribute == "requires_grad" and self._value is True
                else None,
            )

        return Examples.of_calls(window, rows, holds, explain)


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
        subjects=(name,),
        text=f"what {name} returned was detached from what computed it, by detach() or no_grad "
        "inside: backward does not reach it",
    )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._seen = Distinct()
        self._names = ApiNames()
        self._values: dict[APIParam, set[Any]] = {}

    def observe(self, window: Window) -> None:
        for api_code, code in self._seen.new(window, "api", "outputs"):
            if code == NONE:
                continue
            api = window.catalog.apis[api_code]
            for name in self._names.of(api):
                for item in window.catalog.signature(code):
                    for attribute in ATTRIBUTES:
                        value = item.get(attribute)
                        if value is not None:
                            param = APIParam(
                                api_full_name=name,
                                argument=item.path,
                                attribute=attribute,
                                role=api.role,
                            )
                            self._values.setdefault(param, set()).add(value)

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(
                relation=ConsistentOutputRelation.name,
                params=(param, ConstantParam(value=value)),
            )
            for param, values in self._values.items()
            if len(values) <= MAX_VALUES
            for value in sorted(values)
        ]
