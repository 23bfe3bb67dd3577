"""SequenceAxisRelation: modules that treat sequences do not take the samples for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, Hypothesis, Param, Severity, VarTypeParam
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
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import passing_plan
from traincheck_plugin.relations.passing import Deliveries, Delivery, Kind, frames_of, passing
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import MAX_KEPT, SAMPLES_PLAN, given

SEQUENCES = VarTypeParam(var_type=VAR_TYPES["sequence"], attr_name="number")

IN_A_ROW = 2
"""Forwards whose sequences are as long as there are samples until that is no coincidence."""

MIN_KEYS = 16
MIN_KNOWN = 0.9
MIN_ORIGINS = 4
"""So many rows of an input, and this share of all, were in so many earlier forwards: they are
samples that come together anew."""


class SequenceAxisRelation(Relation):
    """Modules that treat sequences have the samples of a batch along the axis for samples.

    ``forall training forwards f of a model that is given n > 1 samples, forall classes C of modules
    with sequences in f: not (in each of the last `IN_A_ROW`, with f, no module of C was given a
    multiple of n sequences, and one was given sequences of length n)``. That an axis is that of the
    samples is known of batches of a loader that shuffles, where all tensors have as many rows as
    the batch has samples, and of inputs whose rows come again in other company. Modules with
    sequences are those with an attribute ``batch_first``. Single sequences with an axis of size 1
    for samples are no example, and single ones without it where n is always the same: there the
    samples may be meant to be one, or one may be as long as there are.

    Catches a recurrent layer or an attention without ``batch_first``, or with it, whose samples see
    one another in place of their own past. Cannot see attention that is written by hand, nor what
    is packed.
    """

    name = "SequenceAxisRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        _check(params)
        return _Monitor()

    def describe(self, params: tuple[Param, ...]) -> str:
        _check(params)
        return "recurrent layers and attention go along sequences, and not along the samples"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _check(params)
        return passing_plan("input", "batch", "loader", "sequence").union(SAMPLES_PLAN)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _check(params: tuple[Param, ...]) -> None:
    """Make sure that a hypothesis is the one of this relation.

    Raises:
        InvariantError: it is another.
    """
    if params != (SEQUENCES,):
        raise InvariantError(
            f"{SequenceAxisRelation.name} expects a VarTypeParam about the number of sequences, "
            f"got {params}"
        )


class _Layer(NamedTuple):
    """What a module with sequences is given.

    Attributes:
        name: of the module in the outermost one.
        type: its class.
        length: of the sequences.
        number: of them; 0 where there is one without an axis for others.
    """

    name: str
    type: str
    length: int
    number: int


class _Verdict(NamedTuple):
    """What the modules of one class are given in a forward.

    Attributes:
        row: of the forward.
        root: label of the outermost module.
        layer: one that shows it.
        number: of samples.
        is_right: whether the samples are along the axis for them.
    """

    row: int
    root: str
    layer: _Layer
    number: int
    is_right: bool


class _Axes:
    """Knows how many samples models are given, and what their modules take for sequences."""

    def __init__(self) -> None:
        self._deliveries = Deliveries()
        self._models: set[str] = set()
        self._rows: dict[tuple[str, str], _Rows] = {}
        self._wrong: dict[str, set[int]] = {}

    def observe(self, window: Window) -> Iterator[_Verdict]:
        """Yield what there is to judge in the next window."""
        layers = _layers(window)
        batches: dict[int, list[Delivery]] = {}
        for passed in passing(window):
            for use, several in self._deliveries.observe(passed):
                batches[use.row] = several
        comes_anew = set()
        for one in given(window):
            if one.row in layers:
                self._models.add(one.model)
            if one.trains and one.model in self._models:
                rows = self._rows.setdefault((one.model, one.name), _Rows())
                if rows.give(one.keys):
                    comes_anew.add(one.row)
        for known in (one for passed in passing(window) for one in passed.inputs):
            modules = layers.get(known.row)
            if modules is None:
                continue
            numbers = [_number(batch) for batch in batches.get(known.row, ())]
            if known.row in comes_anew:
                numbers.append(_num_rows(known.kinds))
            number = next((n for n in numbers if n is not None and n > 1), None)
            if number is not None:
                yield from self._judge(known.row, known.root, modules, number)

    def _judge(self, row: int, root: str, layers: list[_Layer], number: int) -> Iterator[_Verdict]:
        for type_ in dict.fromkeys(layer.type for layer in layers):
            alike = [layer for layer in layers if layer.type == type_]
            right = next((one for one in alike if one.number and one.number % number == 0), None)
            wrong = next((one for one in alike if one.length == number and one.number != 1), None)
            if right is not None:
                yield _Verdict(row, root, right, number, is_right=True)
            elif wrong is not None:
                numbers = self._wrong.setdefault(root, set())
                numbers.add(number)
                if wrong.number or len(numbers) > 1:
                    yield _Verdict(row, root, wrong, number, is_right=False)


def _layers(window: Window) -> dict[int, list[_Layer]]:
    """Return what modules with sequences are given in each forward."""
    found: dict[int, list[_Layer]] = {}
    for row, frame in frames_of(window, "sequence"):
        sizes = zip(frame.columns["length"].tolist(), frame.columns["number"].tolist(), strict=True)
        for code, (length, number) in zip(frame.variables.tolist(), sizes, strict=True):
            variable = window.catalog.variables[code]
            layer = _Layer(variable.name, variable.type, int(length), int(number))
            found.setdefault(row, []).append(layer)
    return found


def _number(batch: Delivery) -> int | None:
    """Return how many samples a batch has along its first axis; None where that is not known."""
    facts = batch.facts
    rows = _num_rows(batch.kinds)
    if facts["shuffles"] != 1 or rows is None:
        return None
    left = facts["samples"] - facts["batch"] * facts["batch_size"]
    return rows if rows == min(facts["batch_size"], left) else None


def _num_rows(kinds: Iterable[Kind]) -> int | None:
    """Return the first dimension of some tensors; None where they have not all the same."""
    rows = {shape[0] for _, shape in kinds}
    return rows.pop() if len(rows) == 1 else None


class _Rows:
    """Finds out whether the rows of an argument come again in other company."""

    def __init__(self) -> None:
        self._origin: dict[int, int] = {}
        self._number = 0
        self._is_known = False

    def give(self, keys: list[int]) -> bool:
        """Take note of the rows of a forward; return whether these are known to be samples."""
        if self._is_known:
            return True
        self._number += 1
        origins = [self._origin[key] for key in keys if key in self._origin]
        if len(origins) >= max(MIN_KEYS, MIN_KNOWN * len(keys)):
            self._is_known = len(set(origins)) >= MIN_ORIGINS
        if self._is_known:
            self._origin.clear()
        elif len(self._origin) < MAX_KEPT:
            for key in keys:
                self._origin.setdefault(key, self._number)
        return self._is_known


class _Monitor(Monitor):
    def __init__(self) -> None:
        self._axes = PerRun(_Axes)
        self._excuses = PerRun[dict[tuple[str, str], Excuse]](dict)

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            return NO_EXAMPLES
        excuses = self._excuses.of(window.catalog)
        judged = [
            one
            for one in self._axes.of(window.catalog).observe(window)
            if excuses.setdefault((one.root, one.layer.type), Excuse(IN_A_ROW - 1)).counts(
                one.is_right
            )
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([one.is_right for one in judged], np.bool_),
            lambda index: _explain(judged[index]),
        )


def _explain(one: _Verdict) -> Explanation:
    layer = one.layer
    name = short(layer.type)
    shown = f"`{layer.name}` ({name})" if layer.name else name
    if layer.number:
        what = f"{layer.number} sequences of length {layer.length}"
        why = "`batch_first` does not fit the order of its axes"
    else:
        what = f"one sequence of length {layer.length}"
        why = "it is given two dimensions, which it takes for a single sequence"
    return Explanation(
        message=f"{shown} is given {what} of a batch of {one.number} samples",
        cause=Cause(
            fact="the samples are taken for a sequence",
            subjects=(layer.name or name,),
            text=f"{shown} goes along the samples of a batch in place of their sequences, so that "
            f"each depends on the others: {why}",
        ),
    )


class _Proposer(Proposer):
    """Proposes the rule where some batch has its samples along the axis for them."""

    def __init__(self) -> None:
        self._axes = PerRun(_Axes)
        self._is_shown = False

    def observe(self, window: Window) -> None:
        self._is_shown |= any(one.is_right for one in self._axes.of(window.catalog).observe(window))

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._is_shown:
            yield Hypothesis(relation=SequenceAxisRelation.name, params=(SEQUENCES,))
