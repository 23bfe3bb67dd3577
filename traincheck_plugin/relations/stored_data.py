"""StoredDataRelation: what a data set stores stays as it is while samples are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import LOADER_FACTS, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
    VarTypeParam,
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
from traincheck_plugin.relations.params import single
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import Variable

MIN_BATCHES = 10
"""Batches after which something was as before them that show that it stays so."""

MAX_CHANGED = 1
"""Batches that change samples which is excused: a cache may be filled late."""

_STORED = VAR_TYPES["stored"]
_START = LOADER_FACTS.index("start")
SAMPLES = VarTypeParam(var_type=_STORED, attr_name="value", pre_value=False, quantifier="every")


class StoredDataRelation(Relation):
    """The arrays that a data set stores are the same after each batch as they were before it.

    ``forall batches b of a loader after its first: array(b) = array(b - 1)``, for each array, and
    list, that the reference never changed. In the place of one stands a hash of some of it, taken
    when a batch is delivered. Of all pipelines: ``forall batches b of a loader that was started
    before, arrays a of two dimensions or more with a row for each sample: reading b changes no
    a``, but rows that were all zeros. `MAX_CHANGED` batches that do are excused; at the first start
    a cache is filled.

    Catches transforms that write into what they are given, noise that is added in place, and
    padding that is appended to the samples themselves. Cannot see what workers change in their
    copies of a data set, which are gone with the epoch, nor small changes of large data.
    """

    name = "StoredDataRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Reading() if params == (SAMPLES,) else _Monitor(_name(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        if params == (SAMPLES,):
            return "the samples that a data set stores are not changed by reading them again"
        return f"`{_name(params)}` stays as it is while its samples are read"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        if params == (SAMPLES,):
            wanted = frozenset({("stored", "value"), ("loader", "value")})
            return Plan(functions=frozenset(), attributes={"data": wanted})  # type: ignore[dict-item]
        _name(params)
        return Plan(functions=frozenset(), attributes={"data": frozenset({("stored", "data")})})

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _name(params: tuple[Param, ...]) -> str:
    """Return the name of what a data set stores.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    who = single(StoredDataRelation.name, params, VarNameParam)
    if who.var_type != _STORED:
        raise InvariantError(
            f"{StoredDataRelation.name} expects something that a data set stores, got {params}"
        )
    return who.var_name


class _Comparison(NamedTuple):
    """What a data set stores, when a batch is delivered.

    Attributes:
        row: of the delivery.
        name: class of the data set, and path in it.
        held: whether it is as it was at the batch before.
    """

    row: int
    name: str
    held: bool


class _Known:
    """What each array was when the last batch was delivered."""

    def __init__(self) -> None:
        self._keys: dict[int, int] = {}

    def observe(self, window: Window) -> Iterator[_Comparison]:
        """Yield the comparisons of the next window."""
        if not window.observed:
            self._keys.clear()
            return
        for row, frame in frames_of(window, "stored"):
            if "data" not in frame.columns:
                continue
            for code, key in zip(
                frame.variables.tolist(), frame.columns["data"].tolist(), strict=True
            ):
                before = self._keys.get(code)
                self._keys[code] = key
                if before is not None:
                    name = _stored_name(window.catalog.variables[code])
                    yield _Comparison(row, name, key == before)


class _Monitor(Monitor):
    """Judges what goes by one name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = PerRun(_Known)

    def observe(self, window: Window) -> Examples:
        known = self._known.of(window.catalog)
        judged = [one for one in known.observe(window) if one.name == self._name]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([one.held for one in judged], np.bool_),
            lambda _: self._explain(),
        )

    def _explain(self) -> Explanation:
        return _explain(self._name)


def _explain(name: str) -> Explanation:
    return Explanation(
        message=f"`{name}` was changed while samples were read from it",
        cause=Cause(
            fact="samples do not come again",
            subjects=(name,),
            text=f"what `{name}` stores is changed in place when samples are read: a transform "
            "writes into the sample that it is given, and the next epoch reads that",
        ),
    )


class _Again(NamedTuple):
    """Samples that are read, by a loader that was started before.

    Attributes:
        row: of the delivery.
        changed: names of the arrays that this changed.
    """

    row: int
    changed: list[str]


def _read_again(window: Window) -> Iterator[tuple[int, _Again]]:
    """Yield the loaders, by codes of their first variables, and what reading does."""
    starts = {
        row: float(frame.columns["value"][_START])
        for row, frame in frames_of(window, "loader")
        if len(frame.variables) > _START
    }
    for row, frame in frames_of(window, "stored"):
        values = frame.columns.get("value")
        if values is None or not starts.get(row, 0.0) > 0:
            continue
        known = ~np.isnan(values)
        if known.any():
            codes = frame.variables[known & (values > 0)].tolist()
            names = [_stored_name(window.catalog.variables[code]) for code in codes]
            yield int(frame.variables[0]), _Again(row, names)


def _stored_name(variable: Variable) -> str:
    dataset = variable.type.rpartition(".")[2]
    return f"{dataset}.{variable.name}" if variable.name else dataset


class _Reading(Monitor):
    """Judges what reading samples again does to those that are stored."""

    def __init__(self) -> None:
        self._num_changed: PerRun[Counter[int]] = PerRun(Counter)

    def observe(self, window: Window) -> Examples:
        numbers = self._num_changed.of(window.catalog)
        judged = []
        for loader, again in _read_again(window):
            numbers[loader] += bool(again.changed)
            if not again.changed or numbers[loader] > MAX_CHANGED:
                judged.append(again)
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([not one.changed for one in judged], np.bool_),
            lambda index: _explain(judged[index].changed[0]),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._known = PerRun(_Known)
        self._number: Counter[str] = Counter()
        self._changed: set[str] = set()
        self._is_read_again = False

    def observe(self, window: Window) -> None:
        self._is_read_again |= any(not again.changed for _, again in _read_again(window))
        for one in self._known.of(window.catalog).observe(window):
            self._number[one.name] += 1
            if not one.held:
                self._changed.add(one.name)

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._is_read_again:
            yield Hypothesis(relation=StoredDataRelation.name, params=(SAMPLES,))
        for name, number in self._number.items():
            if number >= MIN_BATCHES and name not in self._changed:
                who = VarNameParam(var_name=name, var_type=_STORED, attr_name="data")
                yield Hypothesis(relation=StoredDataRelation.name, params=(who,))
