"""What passes through training: the inputs of its forwards, and the batches they are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, itemgetter
from typing import NamedTuple

import numpy as np

from traincheck_plugin.events import LOADER_FACTS, Frame, Window
from traincheck_plugin.invariants.model import VAR_TYPES
from traincheck_plugin.relations.frames import place, positions_of, times_of
from traincheck_plugin.relations.moments import Moments, by_stack
from traincheck_plugin.vocabulary import NONE, Int64, VariableKind

MIN_ELEMENTS = 32
"""With fewer, two batches may be equal by chance."""

MAX_WAITING = 64
"""Batches that are kept until it shows what they are for."""

Kind = tuple[str, tuple[int, ...]]
"""Dtype and shape of a tensor."""


class Values(NamedTuple):
    """What is known of the values of some tensors.

    Attributes:
        names: paths of the tensors, in the batch or among the arguments.
        sizes: numbers of elements.
        lowest, highest: smallest and largest finite value; NaN where there is none.
        negative: share of values below zero.
    """

    names: tuple[str, ...]
    sizes: list[float]
    lowest: list[float]
    highest: list[float]
    negative: list[float]


NO_VALUES = Values((), [], [], [], [])


class Input(NamedTuple):
    """What a forward in training was given.

    Attributes:
        row: of the call.
        begin: when it began.
        time: the same, as `times_of` tells it.
        root: label of the module: ``__main__.Net#0``.
        key: tells it from other inputs; empty where it is not known.
        num_elements: of all its tensors.
        kinds: of its tensors.
        values: of its tensors.
    """

    row: int
    begin: int
    time: int
    root: str
    key: bytes
    num_elements: int
    kinds: frozenset[Kind]
    values: Values


class Delivery(NamedTuple):
    """A batch for training.

    Attributes:
        loader: its label.
        key, num_elements, kinds, values: as of an `Input`.
        facts: those of `LOADER_FACTS`, by name.
        end: when it was delivered.
    """

    loader: str
    key: bytes
    num_elements: int
    kinds: frozenset[Kind]
    values: Values
    facts: dict[str, float]
    end: int


@dataclass(slots=True)
class Passing:
    """What passes through training in one window.

    Attributes:
        position: of the window, in its stretch.
        inputs: of the forwards in training, in the order in which these began.
        delivered: batches, in order.
        evaluated: when other forwards began.
    """

    position: int
    inputs: list[Input] = field(default_factory=list)
    delivered: list[Delivery] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)


def passing(window: Window) -> list[Passing]:
    """Return what passes through training, of each window that shows some of it."""
    found: list[Passing] | None = window.cache.get(passing)
    if found is None:
        by_position: dict[int, Passing] = {}
        for position, one in _inputs(window):
            by_position.setdefault(position, Passing(position)).inputs.append(one)
        for position, batch in _delivered(window):
            by_position.setdefault(position, Passing(position)).delivered.append(batch)
        evaluated = _evaluated(window)
        begins = window.calls.begin[evaluated].tolist()
        for position, begin in zip(window.position_of(evaluated).tolist(), begins, strict=True):
            by_position.setdefault(position, Passing(position)).evaluated.append(begin)
        found = window.cache[passing] = [by_position[position] for position in sorted(by_position)]
        for passed in found:
            passed.inputs.sort(key=_begin)
            passed.evaluated.sort()
    return found


_begin = attrgetter("begin")


def _evaluated(window: Window) -> Int64:
    """Return the forwards that are not part of the training."""
    contexts = window.catalog.contexts
    forwards = window.rows_of_role("forward")
    stages = contexts.column("stage")[window.calls.context[forwards]]
    training, init = (contexts.others.find(stage) for stage in ("training", "init"))
    evaluated: Int64 = forwards[(stages != training) & (stages != init)]
    return evaluated


def inputs_of(window: Window) -> list[Input]:
    """Return the inputs of the forwards in training, in the order in which these began."""
    return [one for passed in passing(window) for one in passed.inputs]


def frames_of(window: Window, kind: VariableKind) -> Iterator[tuple[int, Frame]]:
    """Yield the row of the call and the frame, of each frame of variables of *kind*."""
    positions = positions_of(window, VAR_TYPES[kind])
    rows, _, _ = place(window, positions)
    for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
        if row != NONE:
            yield row, window.frames[position]


class _Shown(NamedTuple):
    """The tensors of one frame: the row of its call, and what an `Input` has besides."""

    row: int
    owner: str
    key: bytes
    num_elements: int
    values: Values


def _tensors(window: Window, kind: VariableKind) -> list[_Shown]:
    """Return the tensors of each frame that shows some, in order.

    The key tells the tensors from others; it is empty where they are not known.
    """
    found: dict[int, _Shown] = {}
    for indexes, shown in by_stack(window, positions_of(window, VAR_TYPES[kind])):
        if not shown.has("value"):
            continue
        variables = [window.catalog.variables[code] for code in shown.variables.tolist()]
        sizes = shown.column("value")
        several = map(
            _Shown,
            shown.calls.tolist(),
            repeat(variables[0].owner),
            _keys(shown),
            np.sum(sizes, axis=1).astype(np.int64).tolist(),
            _values(shown, tuple(variable.name for variable in variables)),
        )
        found.update(zip(indexes.tolist(), several, strict=True))
    return [one for _, one in sorted(found.items()) if one.row != NONE]


def _keys(shown: Moments) -> Iterable[bytes]:
    if not shown.has("data"):
        return repeat(b"")
    data = shown.column("data")
    size = data.shape[1] * data.itemsize
    text = data.tobytes()
    keys = [text[start : start + size] for start in range(0, len(text), size)]
    for number in np.flatnonzero(~np.all(data, axis=1)).tolist():
        keys[number] = b""
    return keys


def _values(shown: Moments, names: tuple[str, ...]) -> Iterable[Values]:
    columns = ("value", "lowest", "highest", "negative")
    if not all(map(shown.has, columns)):
        return repeat(NO_VALUES)
    return map(Values, repeat(names), *(shown.column(name).tolist() for name in columns))


def _inputs(window: Window) -> Iterator[tuple[int, Input]]:
    """Yield the inputs, and in which of the windows each is."""
    shown = _tensors(window, "input")
    if not shown:
        return iter(())
    rows, owners, keys, sizes, values = zip(*shown, strict=True)
    at = np.array(rows, np.int64)
    begins = window.calls.begin[at]
    kinds = map(window.catalog.kinds, window.calls.inputs[at].tolist())
    times = times_of(window, at, begins).tolist()
    several = map(Input, rows, begins.tolist(), times, owners, keys, sizes, kinds, values)
    return zip(window.position_of(at).tolist(), several, strict=True)


def _delivered(window: Window) -> Iterator[tuple[int, Delivery]]:
    """Yield the batches, and in which of the windows each was delivered."""
    shown = _tensors(window, "batch")
    if not shown:
        return iter(())
    facts: dict[int, list[float]] = {}
    for _, told in by_stack(window, positions_of(window, VAR_TYPES["loader"])):
        facts.update(zip(told.calls.tolist(), told.column("value").tolist(), strict=True))
    rows, owners, keys, sizes, values = zip(*shown, strict=True)
    # Older traces tell the first of the facts.
    missing = [math.nan] * len(LOADER_FACTS)
    named = [
        dict(zip(LOADER_FACTS, [*facts[row], *missing], strict=False)) if row in facts else {}
        for row in rows
    ]
    at = np.array(rows, np.int64)
    kinds = map(window.catalog.kinds, window.calls.outputs[at].tolist())
    ends = window.calls.end[at].tolist()
    several = map(Delivery, owners, keys, sizes, kinds, values, named, ends)
    positions = window.position_of(at).tolist()
    return ((p, one) for p, one in zip(positions, several, strict=True) if one.facts)


class Beginnings:
    """Tells when training begins anew: with another optimizer, or an earlier state of it."""

    def __init__(self) -> None:
        self._optimizers: set[int] = set()

    def observe(self, window: Window) -> list[int]:
        """Return when it does in the next window, in order, as `times_of` tells time."""
        loads = window.rows_of_name("torch.optim.Optimizer.load_state_dict")
        rows = np.concatenate([loads, window.rows_of_role("construct")])
        times: list[int] = times_of(window, rows, window.calls.begin[rows]).tolist()
        steps = window.rows_of_role("step")
        targets = window.calls.object[steps].tolist()
        for target in set(targets) - self._optimizers:
            # One that was made while nobody looked: from the begin of the window on.
            self._optimizers.add(target)
            first = steps[targets.index(target), None]
            times += times_of(window, first, np.array([NONE])).tolist()
        return sorted(times)


class Deliveries:
    """Tells the batches for training from those for evaluation, by what is done with them next.

    A batch is for training if a forward in training comes before the next delivery. An evaluation
    may come before that one, as of a teacher that tells what is to be learnt.
    """

    def __init__(self) -> None:
        self._waiting: list[Delivery] = []
        self._is_evaluated = False

    def observe(self, passed: Passing) -> list[tuple[Input, list[Delivery]]]:
        """Return the inputs of the next window that follow batches, and these batches."""
        events: list[tuple[int, Input | Delivery | None]] = [
            *((one.end, one) for one in passed.delivered),
            *((one.begin, one) for one in passed.inputs),
            *((begin, None) for begin in passed.evaluated),
        ]
        events.sort(key=itemgetter(0))
        result = []
        for _, event in events:
            if event is None:
                self._is_evaluated = True
            elif isinstance(event, Delivery):
                if self._is_evaluated:
                    self._waiting.clear()
                    self._is_evaluated = False
                self._waiting = [*self._waiting, event][-MAX_WAITING:]
            elif self._waiting:
                result.append((event, self._waiting))
                self._waiting = []
        return result
