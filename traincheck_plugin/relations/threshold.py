"""ThresholdRelation: a result is bounded by an argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
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
from traincheck_plugin.relations.distinct import Distinct, signatures
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, three
from traincheck_plugin.vocabulary import NONE, Item

RESULT = "result:"
"""Begins the `argument` of the parameter that names a result."""

AT_MOST, AT_LEAST = "at most", "at least"


class ThresholdRelation(Relation):
    """A size of a result of A is at most, or at least, a whole number that A was given.

    ``forall calls a of A: shape(result(a)[p])[d] <= argument(a)[q]``, or ``>=``. Proposed where it
    held in every call and the bound was reached in some, since most numbers are larger than most
    sizes by accident.

    Catches a generation that goes on for longer than was asked for. Cannot see functions that were
    not named in ``--modules-to-instr``: of others no numbers are recorded.
    """

    name = "ThresholdRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        given, returned, side = three(self.name, params, APIParam, APIParam, ConstantParam)
        if side.value not in (AT_MOST, AT_LEAST):
            raise InvariantError(
                f"{self.name} needs {AT_MOST!r} or {AT_LEAST!r}, got {side.value!r}"
            )
        return _Monitor(given, returned, is_upper=side.value == AT_MOST)

    def describe(self, params: tuple[Param, ...]) -> str:
        given, returned, side = three(self.name, params, APIParam, APIParam, ConstantParam)
        name = short(given.api_full_name)
        return f"{_size(returned)} of {name} is {side.value} its argument `{given.argument}`"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(three(self.name, params, APIParam, APIParam, ConstantParam)[0])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _size(returned: APIParam) -> str:
    path = (returned.argument or "").removeprefix(RESULT)
    dimension = (returned.attribute or "").removeprefix("shape.")
    return f"dimension {dimension} of the result{f' `{path}`' if path else ''}"


def _numbers(items: Iterable[Item]) -> dict[str, int]:
    """Return the whole numbers among arguments, by path."""
    return {
        item.path: item.value
        for item in items
        if isinstance(item.value, int) and not isinstance(item.value, bool)
    }


def _sizes(items: Iterable[Item]) -> dict[tuple[str, str], int]:
    """Return the sizes of tensors, by path and attribute: ``shape.0``."""
    return {
        (item.path, f"shape.{dimension}"): size
        for item in items
        for dimension, size in enumerate(item.shape or ())
    }


class _Monitor(Monitor):
    def __init__(self, given: APIParam, returned: APIParam, *, is_upper: bool) -> None:
        self._given = given
        self._returned = returned
        self._is_upper = is_upper

    def observe(self, window: Window) -> Examples:
        name = self._given.api_full_name
        rows, distinct, which = signatures(window, name, "exception", "inputs", "outputs")
        if not len(rows):
            return NO_EXAMPLES
        values = [
            self._look_up(window.catalog, inputs, outputs) if exception == NONE else None
            for exception, inputs, outputs in distinct
        ]
        known = np.array([pair is not None for pair in values])[which]
        if not known.any():
            return NO_EXAMPLES
        kept = np.array([pair is None or self._is_within(*pair) for pair in values])
        rows, seen = rows[known], which[known]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            name = short(part.catalog.apis[int(part.calls.api[row])].name)
            pair = values[seen[index]]
            # Only examples are explained, and these have both numbers.
            bound, size = pair if pair is not None else (0, 0)
            what = _size(self._returned)
            side = AT_MOST if self._is_upper else AT_LEAST
            return Explanation(
                message=f"{what} of {name} is {size}, expected {side} {bound}",
                cause=Cause(
                    fact=f"{what} is not bounded",
                    subjects=(name,),
                    text=f"{name} does not keep to its argument `{self._given.argument}`",
                ),
            )

        return Examples.of_calls(window, rows, kept[seen], explain)

    def _is_within(self, bound: int, size: int) -> bool:
        return size <= bound if self._is_upper else size >= bound

    def _look_up(self, catalog: Catalog, inputs: int, outputs: int) -> tuple[int, int] | None:
        if NONE in (inputs, outputs):
            return None
        path = (self._returned.argument or "").removeprefix(RESULT)
        bound = _numbers(catalog.signature(inputs)).get(self._given.argument or "")
        size = _sizes(catalog.signature(outputs)).get((path, self._returned.attribute or ""))
        return None if bound is None or size is None else (bound, size)


@dataclass(slots=True)
class _Seen:
    """How a size compared with a number in all calls so far."""

    is_at_most: bool = True
    is_at_least: bool = True
    was_reached: bool = False


class _Proposer(Proposer):
    """Proposes the bounds that held in every call and were reached in some."""

    def __init__(self) -> None:
        self._new = Distinct()
        self._names = ApiNames()
        self._seen: dict[tuple[APIParam, APIParam], _Seen] = {}

    def observe(self, window: Window) -> None:
        for api_code, inputs, outputs in self._new.new(window, "api", "inputs", "outputs"):
            if NONE in (inputs, outputs):
                continue
            numbers = _numbers(window.catalog.signature(inputs))
            if not numbers:
                continue
            sizes = _sizes(window.catalog.signature(outputs))
            api = window.catalog.apis[api_code]
            for name in self._names.of(api):
                for given, bound in numbers.items():
                    for (path, attribute), size in sizes.items():
                        key = (
                            APIParam(api_full_name=name, argument=given, role=api.role),
                            APIParam(
                                api_full_name=name,
                                argument=RESULT + path,
                                attribute=attribute,
                                role=api.role,
                            ),
                        )
                        seen = self._seen.setdefault(key, _Seen())
                        seen.is_at_most &= size <= bound
                        seen.is_at_least &= size >= bound
                        seen.was_reached |= size == bound

    def hypotheses(self) -> Iterable[Hypothesis]:
        for key, seen in self._seen.items():
            if not seen.was_reached:
                continue
            for side, holds in ((AT_MOST, seen.is_at_most), (AT_LEAST, seen.is_at_least)):
                if holds:
                    params: tuple[Param, ...] = (*key, ConstantParam(value=side))
                    yield Hypothesis(relation=ThresholdRelation.name, params=params)
