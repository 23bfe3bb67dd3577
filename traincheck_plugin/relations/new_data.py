"""NewDataRelation: no data that training has seen comes again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
)
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
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.params import pair, passing_plan
from traincheck_plugin.relations.passing import MIN_ELEMENTS, Deliveries, passing
from traincheck_plugin.relations.per_run import PerRun

MIN_STEPS = 10
"""Steps with new data that show that data is always new."""

MAX_STEPS = 1 << 14
"""Steps whose data is kept in mind."""

_BATCH, _INPUT = VAR_TYPES["batch"], VAR_TYPES["input"]


class NewDataRelation(Relation):
    """A model is never given what it was given long before; no loader repeats itself.

    ``forall of the first n steps s, t with s + 1 < t: data(s) and data(t) have nothing in common``,
    with n the number of steps of the reference; the first failure in a row is excused. The data are
    the inputs of the models of one class in training, or the batches of one loader for training.
    What is used in two steps in a row is another rule's business: two optimizers may share it.

    Catches an order that is repeated after a resumption, batches that were not skipped then, and a
    loader that is started anew for each step. Cannot see samples that come again in other batches.
    Says nothing of tensors so small that they may be equal by chance, nor of a loader that goes
    through its samples in order and did so but once in the reference.
    """

    name = "NewDataRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_source(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        source, length = _source(params)
        verb = "is given" if source.var_type == _INPUT else "delivers"
        return f"{source.var_name} {verb} nothing twice in its first {length} steps"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        source, _ = _source(params)
        return passing_plan("input", *(("batch", "loader") if source.var_type == _BATCH else ()))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _source(params: tuple[Param, ...]) -> tuple[VarNameParam, int]:
    """Return whose data a hypothesis is about, and for how many steps.

    Raises:
        InvariantError: it is none of this relation.
    """
    name = NewDataRelation.name
    source, length = pair(name, params, VarNameParam, ConstantParam)
    if source.var_type in (_BATCH, _INPUT) and type(length.value) is int:
        return source, length.value
    raise InvariantError(
        f"{name} needs a model or a loader and a number of steps, got {source!r}, {length.value!r}"
    )


class _Data(NamedTuple):
    """What was given or delivered in one step.

    Attributes:
        source: by whom, or to whom: its kind and its name.
        number: how many training steps after the first.
        row: of a call of the step.
        keys: tell it from other data.
        is_sequential: whether it is known to come in order for the first time.
    """

    source: tuple[str, str]
    number: int
    row: int
    keys: frozenset[bytes]
    is_sequential: bool = False


class _Steps:
    """Follows what is given and delivered."""

    def __init__(self) -> None:
        self._deliveries = Deliveries()
        self._first: dict[tuple[str, str], int] = {}

    def observe(self, window: Window) -> Iterator[_Data]:
        """Yield the data of the steps of the next window."""
        if not window.observed:
            # Nobody knows what the batches that are left were for.
            self._deliveries = Deliveries()
            return
        steps = window.catalog.contexts.column("step")
        context = window.calls.context
        for passed in passing(window):
            found: dict[tuple[str, str], list[tuple[int, bytes, bool]]] = {}
            for one in passed.inputs:
                if one.key and one.num_elements >= MIN_ELEMENTS:
                    source = _INPUT, class_name(one.root)
                    found.setdefault(source, []).append((one.row, one.key, False))
            for use, batches in self._deliveries.observe(passed):
                for batch in batches:
                    if batch.key and batch.num_elements >= MIN_ELEMENTS:
                        loader = batch.loader.rpartition(".")[2]
                        is_first = batch.facts["shuffles"] == 0 and batch.facts["start"] == 0
                        several = found.setdefault((_BATCH, loader), [])
                        several.append((use.row, batch.key, is_first))
            for source, several in found.items():
                row = several[-1][0]
                step = int(steps[context[row]])
                yield _Data(
                    source,
                    step - self._first.setdefault(source, step),
                    row,
                    frozenset(key for _, key, _ in several),
                    all(is_first for *_, is_first in several),
                )


class _Seen:
    """Remembers the data of earlier steps."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        # The last steps, of which those after them may use the data again.
        self._recent: list[tuple[int, frozenset[bytes]]] = []

    def has(self, data: _Data) -> bool:
        """Return whether some of *data* was there before the last step, and remember it."""
        while self._recent and self._recent[0][0] < data.number - 1:
            self._keys |= self._recent.pop(0)[1]
        self._recent.append((data.number, data.keys))
        return not self._keys.isdisjoint(data.keys)


class _Monitor(Monitor):
    def __init__(self, source: VarNameParam, length: int) -> None:
        self._source = source.var_type, source.var_name
        self._length = min(length, MAX_STEPS)
        self._steps = PerRun(_Steps)
        self._seen = PerRun(_Seen)
        self._has_failed = False

    def observe(self, window: Window) -> Examples:
        seen = self._seen.of(window.catalog)
        rows, holds = [], []
        for data in self._steps.of(window.catalog).observe(window):
            if data.source != self._source or data.number >= self._length:
                continue
            held = not seen.has(data)
            if held or self._has_failed:
                rows.append(data.row)
                holds.append(held)
            self._has_failed = not held
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), self._explain
        )

    def _explain(self, _: int) -> Explanation:
        kind, name = self._source
        did = "was given" if kind == _INPUT else "delivered"
        return Explanation(
            message=f"{name} {did} the same data as long before",
            cause=Cause(
                fact="data comes again",
                subjects=("data",),
                text="training sees the same data again: a generator was seeded anew, batches were "
                "not skipped after a resumption, or a loader is started for each step",
            ),
        )


class _Proposer(Proposer):
    """Proposes the sources of which nothing was there twice."""

    def __init__(self) -> None:
        self._steps = PerRun(_Steps)
        self._seen: PerRun[dict[tuple[str, str], _Seen]] = PerRun(dict)
        self._repeating: set[tuple[str, str]] = set()
        self._only_once: dict[tuple[str, str], bool] = {}
        self._count: dict[tuple[str, str], int] = {}
        self._length: dict[tuple[str, str], int] = {}

    def observe(self, window: Window) -> None:
        seen = self._seen.of(window.catalog)
        for data in self._steps.of(window.catalog).observe(window):
            source = data.source
            if source not in self._repeating and seen.setdefault(source, _Seen()).has(data):
                self._repeating.add(source)
                del seen[source]
            self._count[source] = self._count.get(source, 0) + 1
            self._length[source] = max(self._length.get(source, 0), data.number + 1)
            self._only_once[source] = self._only_once.get(source, True) and data.is_sequential

    def hypotheses(self) -> Iterable[Hypothesis]:
        for source, count in self._count.items():
            is_known = source not in self._repeating and not self._only_once[source]
            if is_known and count >= MIN_STEPS:
                kind, name = source
                param = VarNameParam(var_name=name, var_type=kind, attr_name="data")
                length = ConstantParam(value=min(self._length[source], MAX_STEPS))
                yield Hypothesis(relation=NewDataRelation.name, params=(param, length))
