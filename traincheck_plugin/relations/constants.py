"""What is the same in all calls of an API: an attribute of an argument or a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, Hypothesis
from traincheck_plugin.relations.api_names import ApiNames
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    no_explanation,
)
from traincheck_plugin.relations.distinct import Distinct, signatures
from traincheck_plugin.vocabulary import NONE, Api, Item

MAX_VALUES = 3
"""What takes more values than this is no constant under any condition."""

Column = Literal["inputs", "outputs"]

_Explain = Callable[[Window, int, Item], Explanation]


class ConstantMonitor(Monitor):
    """Judges each call with an argument, or a result, that has the attribute.

    One that is None lacks what it had in the reference.

    Args:
        column: whether it is an argument or a result.
        api: which one, and the attribute.
        value: that it has to be.
        explain: given the window and the row of a call, and what was there instead.
    """

    def __init__(self, column: Column, api: APIParam, value: Any, explain: _Explain) -> None:
        self._column = column
        self._api = api
        self._value = value
        self._explain = explain

    def observe(self, window: Window) -> Examples:
        rows, distinct, which = signatures(window, self._api.api_full_name, self._column)
        if not len(rows):
            return NO_EXAMPLES
        found = [self._find(window.catalog.signature(code)) for (code,) in distinct]
        known = np.array([item is not None for item in found])[which]
        if not known.any():
            return NO_EXAMPLES
        attribute = self._api.attribute or ""
        values = [item.get(attribute) if item is not None else None for item in found]
        holds = np.array([value == self._value for value in values])[which][known]
        rows, seen = rows[known], which[known]

        def explain(index: int) -> Explanation:
            part, row = window.at(int(rows[index]))
            item = found[seen[index]]
            return self._explain(part, row, item) if item is not None else no_explanation(index)

        return Examples.of_calls(window, rows, holds, explain)

    def _find(self, items: Iterable[Item]) -> Item | None:
        """Return what is to be judged."""
        for item in items:
            if item.path == self._api.argument:
                is_known = item.get(self._api.attribute or "") is not None
                is_left_out = self._column == "inputs" and item.type == "NoneType"
                return item if is_known or is_left_out else None
        return None


class ConstantProposer(Proposer):
    """Proposes the values that there were, where there were few.

    Args:
        relation: its name.
        column: whether to look at arguments or results.
        attributes: to look at.
        is_claimed: what to propose of an API and one of its arguments or results, given an
            attribute and its value.
    """

    def __init__(
        self,
        relation: str,
        column: Column,
        attributes: Sequence[str],
        is_claimed: Callable[[Api, Item, str, Any], bool],
    ) -> None:
        self._relation = relation
        self._column = column
        self._attributes = attributes
        self._is_claimed = is_claimed
        self._seen = Distinct()
        self._names = ApiNames()
        self._values: dict[APIParam, set[Any]] = {}

    def observe(self, window: Window) -> None:
        for api_code, code in self._seen.new(window, "api", self._column):
            api = window.catalog.apis[api_code]
            if code == NONE:
                continue
            for name in self._names.of(api):
                for item in window.catalog.signature(code):
                    for attribute in self._attributes:
                        value = item.get(attribute)
                        if value is not None and self._is_claimed(api, item, attribute, value):
                            param = APIParam(
                                api_full_name=name,
                                argument=item.path,
                                attribute=attribute,
                                role=api.role,
                            )
                            self._values.setdefault(param, set()).add(value)

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=self._relation, params=(param, ConstantParam(value=value)))
            for param, values in self._values.items()
            if len(values) <= MAX_VALUES
            for value in sorted(values, key=repr)
        ]
