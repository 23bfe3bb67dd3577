"""ConsistentInputOutputRelation: a result is of the kind of an argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.api_names import ApiNames
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.distinct import Distinct, signatures
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE

ATTRIBUTES = ("dtype", "shape")
"""That a result is where the arguments are goes without saying: torch raises where it is not."""

RESULT = "result:"
"""Begins the `argument` of the parameter that names a result."""


class ConsistentInputOutputRelation(Relation):
    """An attribute of a result of A equals one of an argument of the same call.

    ``forall calls a of A: attribute(result(a)[p]) = attribute(argument(a)[q])``.

    Catches a layer that silently changes the dtype, operands that are broadcast against each other.
    Cannot see what happens between calls.
    """

    name = "ConsistentInputOutputRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*pair(self.name, params, APIParam, APIParam))

    def describe(self, params: tuple[Param, ...]) -> str:
        given, returned = pair(self.name, params, APIParam, APIParam)
        path = (returned.argument or "").removeprefix(RESULT)
        return (
            f"{short(given.api_full_name)} returns{f' `{path}`' if path else ''} in the "
            f"{given.attribute} of its argument `{given.argument}`"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(pair(self.name, params, APIParam, APIParam)[0])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "info"


def _values(
    catalog: Catalog, given: APIParam, returned: APIParam, inputs: int, outputs: int
) -> tuple[Any, Any]:
    path = (returned.argument or "").removeprefix(RESULT)
    first = [i for i in catalog.signature(inputs) if i.path == given.argument]
    second = [i for i in catalog.signature(outputs) if i.path == path]
    return (
        first[0].get(given.attribute or "") if first else None,
        second[0].get(returned.attribute or "") if second else None,
    )


class _Monitor(Monitor):
    def __init__(self, given: APIParam, returned: APIParam) -> None:
        self._given = given
        self._returned = returned
        # By the codes of both signatures, which repeat in every step.
        self._known: PerRun[dict[tuple[int, int], tuple[Any, Any]]] = PerRun(dict)

    def observe(self, window: Window) -> Examples:
        name = self._given.api_full_name
        rows, distinct, which = signatures(window, name, "exception", "inputs", "outputs")
        if not len(rows):
            return NO_EXAMPLES
        values = [
            self._look_up(window.catalog, inputs, outputs) if exception == NONE else (None, None)
            for exception, inputs, outputs in distinct
        ]
        known = np.array([a is not None and b is not None for a, b in values])[which]
        if not known.any():
            return NO_EXAMPLES
        holds = np.array([a == b for a, b in values])[which][known]
        rows, seen = rows[known], which[known]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = short(window.catalog.apis[int(part.calls.api[row])].name)
            expected, actual = values[seen[index]]
            return Explanation(
                message=f"{name} returned {self._returned.attribute} {actual} for an argument "
                f"of {expected}"
            )

        return Examples.of_calls(window, rows, holds, explain)

    def _look_up(self, catalog: Catalog, inputs: int, outputs: int) -> tuple[Any, Any]:
        codes = inputs, outputs
        known = self._known.of(catalog)
        values = known.get(codes)
        if values is None:
            values = known[codes] = _values(catalog, self._given, self._returned, *codes)
        return values


class _Proposer(Proposer):
    """Proposes which argument each result was like in every call."""

    def __init__(self) -> None:
        self._seen = Distinct()
        self._names = ApiNames()
        self._equal: dict[tuple[APIParam, APIParam], bool] = {}

    def observe(self, window: Window) -> None:
        for api_code, inputs, outputs in self._seen.new(window, "api", "inputs", "outputs"):
            if NONE in (inputs, outputs):
                continue
            api = window.catalog.apis[api_code]
            for name in self._names.of(api):
                for given in window.catalog.signature(inputs):
                    for returned in window.catalog.signature(outputs):
                        for attribute in ATTRIBUTES:
                            value = given.get(attribute)
                            if value is None or returned.get(attribute) is None:
                                continue
                            key = (
                                APIParam(
                                    api_full_name=name,
                                    argument=given.path,
                                    attribute=attribute,
                                    role=api.role,
                                ),
                                APIParam(
                                    api_full_name=name,
                                    argument=RESULT + returned.path,
                                    attribute=attribute,
                                    role=api.role,
                                ),
                            )
                            same = value == returned.get(attribute)
                            self._equal[key] = self._equal.get(key, True) and same

    def hypotheses(self) -> Iterable[Hypothesis]:
        # Where several arguments are alike, the first one speaks for all.
        first: dict[APIParam, APIParam] = {}
        for (given, returned), equal in self._equal.items():
            if equal:
                first.setdefault(returned, given)
        return [
            Hypothesis(relation=ConsistentInputOutputRelation.name, params=(given, returned))
            for returned, given in first.items()
        ]
