"""BroadcastRelation: tensors are expanded to one another's shapes in the ways of the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.losses import FIRST
from traincheck_plugin.relations.params import single
from traincheck_plugin.relations.per_run import PerRun

MIN_STEPS = 10
"""Steps of the reference with a call of a function that show in which ways it expands."""

MAX_WAYS = 8
"""Ways of one function: where there are more, they depend on the data."""

FUNCTIONS = frozenset(
    {
        *("add", "sub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "lerp"),
        *("eq", "ne", "lt", "le", "gt", "ge", "masked_fill"),
    }
)
"""Functions of two tensors that they expand to one shape."""

_SAME, _FIRST, _SECOND = "=", "<", ">"
"""What is told of a dimension: both have it, or that one is expanded along it."""


class BroadcastRelation(Relation):
    """Tensors are expanded along the dimensions along which they were in the reference.

    ``forall training steps s of the first `FIRST`, forall calls f(x, y) in s with gradients
    enabled, of functions that the reference called: way(x, y) in ways(f)``, where the way tells
    for each dimension which of the two is expanded along it; x and y of one shape are none. The
    first failure in a row is excused, since a batch of one sample may look otherwise.

    Catches a positional encoding that is added along the samples, a bias or a weight that is one
    for each sample in place of each feature, and scores of n samples that become n times n. Cannot
    see what is expanded within a function, nor tensors that are of one size by chance.
    """

    name = "BroadcastRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_known(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        names = sorted(_known(params))
        return f"what {', '.join(names)} take is expanded along the dimensions of the reference"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        functions = {
            f"torch.{within}{name}" for name in _known(params) for within in ("", "Tensor.")
        }
        return Plan(functions=frozenset(functions), attributes={})

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


Shape = tuple[int, ...]

Ways = dict[str, frozenset[str]]
"""The ways of each function."""


def _known(params: tuple[Param, ...]) -> Ways:
    """Return the functions of a hypothesis, each with its ways.

    Raises:
        InvariantError: it is none of this relation.
    """
    told = single(BroadcastRelation.name, params, ConstantParam).value
    ways: dict[str, set[str]] = {}
    for one in told if isinstance(told, tuple) else ():
        name, colon, way = one.partition(":") if isinstance(one, str) else ("", "", "")
        if name not in FUNCTIONS or not colon or not set(way) <= {_SAME, _FIRST, _SECOND}:
            ways.clear()
            break
        ways.setdefault(name, set()).update({way} - {""})
    if not ways:
        raise InvariantError(
            f"{BroadcastRelation.name} expects functions with ways, as 'add:=>=', got {params}"
        )
    return {name: frozenset(several) for name, several in ways.items()}


class _Call(NamedTuple):
    """A call of a function of two tensors.

    Attributes:
        row: of the call.
        position: of its window, in the stretch.
        name: of the function.
        way: in which they are expanded; "" where they are not.
        shapes: of the two.
    """

    row: int
    position: int
    name: str
    way: str
    shapes: tuple[Shape, ...]


class _Functions:
    """Finds the calls of the first training steps of a run."""

    def __init__(self) -> None:
        self._first: int | None = None

    def observe(self, window: Window) -> Iterator[_Call]:
        """Yield them, of each window with a step those that differ."""
        calls, catalog = window.calls, window.catalog
        codes = {
            code: name
            for code in window.api_codes
            if catalog.apis[code].role == "function"
            and (name := catalog.apis[code].name.rpartition(".")[2]) in FUNCTIONS
        }
        if not codes or not window.observed:
            return
        rows = np.sort(np.concatenate([window.rows_of_api(code) for code in codes]))
        contexts = catalog.contexts
        rows = rows[contexts.column("grad_enabled")[calls.context[rows]] != 0]
        positions = window.position_of(rows)
        with_step = np.isin(positions, window.position_of(window.rows_of_role("step")))
        rows, positions = rows[with_step], positions[with_step]
        if not len(rows):
            return
        steps = contexts.column("step")[calls.context[rows]]
        if self._first is None:
            self._first = int(steps[0])
        is_early = steps < self._first + FIRST
        rows, positions = rows[is_early], positions[is_early]
        keys = np.stack([positions, calls.api[rows], calls.inputs[rows]])
        _, chosen = np.unique(keys, axis=1, return_index=True)
        for place in np.sort(chosen).tolist():
            row = int(rows[place])
            items = catalog.signature(int(calls.inputs[row]))
            found = _way(tuple(item.shape for item in items if item.shape is not None)[:2])
            if found is not None:
                yield _Call(row, int(positions[place]), codes[int(calls.api[row])], *found)


@lru_cache(maxsize=1 << 14)
def _way(shapes: tuple[Shape, ...]) -> tuple[str, tuple[Shape, ...]] | None:
    """Return the way in which two tensors are expanded, and their shapes.

    None where there are no two, or one is a single number.
    """
    if len(shapes) < 2:
        return None
    first, second = shapes
    if max(first, default=1) <= 1 or max(second, default=1) <= 1:
        return None
    way = []
    for one, other in zip_longest(reversed(first), reversed(second), fillvalue=1):
        way.append(_SAME if one == other else _FIRST if one == 1 else _SECOND)
    told = "".join(reversed(way))
    return ("" if set(told) == {_SAME} else told), shapes


class _Monitor(Monitor):
    def __init__(self, ways: Ways) -> None:
        self._ways = ways
        self._functions = PerRun(_Functions)
        self._excuses = PerRun[dict[str, Excuse]](dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        by_window: dict[tuple[int, str], list[_Call]] = {}
        for call in self._functions.of(window.catalog).observe(window):
            if call.name in self._ways:
                by_window.setdefault((call.position, call.name), []).append(call)
        judged = []
        for (_, name), several in by_window.items():
            other = next((one for one in several if one.way not in self._ways[name] | {""}), None)
            if excuses.setdefault(name, Excuse()).counts(other is None):
                judged.append((other or several[-1], other is None))
        if not judged:
            return NO_EXAMPLES
        judged.sort(key=lambda one: one[0].row)
        return Examples.of_calls(
            window,
            np.array([call.row for call, _ in judged], np.int64),
            np.array([held for _, held in judged], np.bool_),
            lambda index: self._explain(judged[index][0]),
        )

    def _explain(self, call: _Call) -> Explanation:
        first, second = (" x ".join(map(str, shape)) for shape in call.shapes)
        return Explanation(
            message=f"{call.name} expands tensors of {first} and {second} to one another, in a way "
            "that the reference has not",
            cause=Cause(
                fact="tensors are expanded otherwise",
                subjects=(call.name,),
                text=f"{call.name} is given tensors of {first} and {second}, which are expanded "
                "along other dimensions than in a healthy run: one has another shape, or its axes "
                "in another order",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._functions = PerRun(_Functions)
        self._steps: Counter[str] = Counter()
        self._ways: dict[str, set[str]] = {}

    def observe(self, window: Window) -> None:
        seen: set[tuple[int, str]] = set()
        for call in self._functions.of(window.catalog).observe(window):
            self._ways.setdefault(call.name, set()).add(call.way)
            seen.add((call.position, call.name))
        self._steps.update(name for _, name in seen)

    def hypotheses(self) -> Iterable[Hypothesis]:
        told = [
            f"{name}:{way}"
            for name, ways in sorted(self._ways.items())
            if self._steps[name] >= MIN_STEPS and len(ways) <= MAX_WAYS
            for way in sorted({*ways, ""})
        ]
        if told:
            param = ConstantParam(value=tuple(told))
            yield Hypothesis(relation=BroadcastRelation.name, params=(param,))
