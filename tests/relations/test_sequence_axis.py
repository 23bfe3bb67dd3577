"""Modules that take the samples of a batch for a sequence, against a naive reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import LOADER_FACTS, Window
from traincheck_plugin.relations.sequence_axis import (
    IN_A_ROW,
    MIN_KEYS,
    MIN_ORIGINS,
    SEQUENCES,
    SequenceAxisRelation,
)
from traincheck_plugin.vocabulary import Variable

RELATION = SequenceAxisRelation()
PARAMS = (SEQUENCES,)
LOADER, MODEL = "torch.utils.data.DataLoader#0", "__main__.Net#0"
LSTM, ATTENTION = "torch.nn.LSTM", "torch.nn.MultiheadAttention"
SIZE = 4
UNTOLD = [math.nan] * 2

Layer = tuple[str, int, int]
"""Class of a module, and the length and the number of its sequences."""


class Step(NamedTuple):
    """A forward, and the batch before it: its samples, and what its modules are given."""

    layers: Sequence[Layer]
    number: int = SIZE
    shuffles: float = 1
    others: int | None = None
    keys: Sequence[int] = ()
    has_batch: bool = True


def _windows(steps: Sequence[Step]) -> list[Window]:
    run, windows = RunBuilder(), []
    facts = run.variables(
        *(Variable(kind="loader", name=n, owner=LOADER, type="float") for n in LOADER_FACTS)
    )
    batch = run.variables(Variable(kind="batch", name="0", owner=LOADER, type="torch.Tensor"))
    entered = run.variables(Variable(kind="input", name="0", owner=MODEL, type="torch.Tensor"))
    [sample] = run.variables(
        Variable(kind="sample", name="0", owner=MODEL, type="torch.float32"),
    )
    for index, step in enumerate(steps):
        run.at(stage="training", step=index)
        shapes = [tensor("0", shape=(step.number, 3, 2))]
        if step.others is not None:
            shapes.append(tensor("1", shape=(step.others,)))
        if step.has_batch:
            with run.calling("torch.utils.data.DataLoader.__next__", object=LOADER, outputs=shapes):
                run.frame("end", batch, data=index + 1, value=64)
                # The last batch of an epoch has what is left.
                samples = 10 * SIZE + (step.number if step.number < SIZE else 0)
                at = 10 if step.number < SIZE else 3
                run.frame(
                    "end", facts, value=[step.shuffles, samples, SIZE, 0, at, *[math.nan] * 2]
                )
        with run.calling("__main__.Net.forward", object=MODEL, inputs=shapes):
            run.frame("end", entered, data=index + 1, value=64)
            if step.keys:
                run.frame("end", np.full(len(step.keys), sample, np.int32), data=list(step.keys))
            if step.layers:
                codes = run.variables(
                    *(
                        Variable(kind="sequence", name=f"layer.{place}", owner=MODEL, type=type_)
                        for place, (type_, _, _) in enumerate(step.layers)
                    )
                )
                _, lengths, numbers = zip(*step.layers, strict=True)
                run.frame("end", codes, length=list(lengths), number=list(numbers))
        windows.append(run.window())
    return windows


def _held(steps: Sequence[Step]) -> list[bool]:
    return [held for _, held in labels(RELATION, PARAMS, _windows(steps))]


LAYERS = st.lists(
    st.tuples(
        st.sampled_from([LSTM, ATTENTION]),
        st.sampled_from([2, SIZE, SIZE, 7]),
        st.sampled_from([0, 1, 2, SIZE, 7, 2 * SIZE]),
    ),
    max_size=3,
)


@given(
    st.lists(
        st.tuples(
            LAYERS,
            st.sampled_from([SIZE, SIZE, 2, 1]),
            st.sampled_from([1, 1, 1, 0, math.nan]),
            st.sampled_from([None, None, SIZE, 9]),
        ).map(lambda told: Step(*told)),
        max_size=12,
    )
)
def test_what_goes_along_the_samples_is_told(steps: list[Step]) -> None:
    expected, num_failed, wrong_numbers = [], {LSTM: 0, ATTENTION: 0}, set()
    for step in steps:
        number = step.number
        if step.shuffles != 1 or step.others not in (None, number) or number == 1:
            continue
        for type_ in dict.fromkeys(type_ for type_, *_ in step.layers):
            sizes = [(length, count) for one, length, count in step.layers if one == type_]
            if any(count and count % number == 0 for _, count in sizes):
                num_failed[type_] = 0
                expected.append(True)
                continue
            counts = [count for length, count in sizes if length == number and count != 1]
            if counts:
                wrong_numbers.add(number)
                if counts[0] or len(wrong_numbers) > 1:
                    num_failed[type_] += 1
                    if num_failed[type_] >= IN_A_ROW:
                        expected.append(False)
    assert _held(steps) == expected


RIGHT = Step([(LSTM, 3, SIZE)])
WRONG = Step([(LSTM, SIZE, 3)])


def _epoch(order: Sequence[int], layer: Layer, size: int = MIN_KEYS) -> list[Step]:
    """Return steps without a loader, with the samples in some order."""
    return [
        Step([layer], size, keys=[key + 1 for key in order[start : start + size]], has_batch=False)
        for start in range(0, len(order), size)
    ]


def test_samples_that_come_in_other_company_are_known_without_a_loader() -> None:
    number = MIN_KEYS * MIN_ORIGINS
    order = list(range(number))
    mixed = [order[(place * 17) % number] for place in order]
    wrong = (LSTM, MIN_KEYS, 3)
    assert _held([*_epoch(order, wrong), *_epoch(order, wrong)]) == []
    held = _held([*_epoch(order, wrong), *_epoch(mixed, wrong)])
    assert held == [False] * (MIN_ORIGINS - IN_A_ROW + 1)
    right = (LSTM, 3, MIN_KEYS)
    assert _held([*_epoch(order, right), *_epoch(mixed, right)]) == [True] * MIN_ORIGINS
    # Before they come again, nothing is known.
    assert _held(_epoch(mixed, wrong)) == []


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(PARAMS)
    *_, examples = [monitor.observe(window) for window in _windows([WRONG] * IN_A_ROW)]
    explanation = examples.explain(0)
    assert explanation.message == (
        "`layer.0` (LSTM) is given 3 sequences of length 4 of a batch of 4 samples"
    )
    assert explanation.cause is not None
    assert explanation.cause.text.endswith("`batch_first` does not fit the order of its axes")
    flat = [Step([(LSTM, number, 0)], number) for number in (4, 2, 4, 4, 4)]
    monitor = RELATION.monitor(PARAMS)
    *_, examples = [monitor.observe(window) for window in _windows(flat)]
    explanation = examples.explain(0)
    assert "is given one sequence of length 4" in explanation.message
    assert explanation.cause is not None
    assert explanation.cause.text.endswith("which it takes for a single sequence")


def test_what_was_not_observed_is_not_judged() -> None:
    windows = _windows([WRONG] * IN_A_ROW)
    left_out = RunBuilder().window(observed=False)
    assert not len(RELATION.monitor(PARAMS).observe(left_out))
    assert [held for _, held in labels(RELATION, PARAMS, windows)] == [False]


@pytest.mark.parametrize(
    ("step", "found"), [(RIGHT, [PARAMS]), (WRONG, []), (RIGHT._replace(shuffles=0), [])]
)
def test_what_the_reference_shows_is_proposed(step: Step, found: list) -> None:
    proposer = RELATION.proposer()
    for window in _windows([step]):
        proposer.observe(window)
    assert [hypothesis.params for hypothesis in proposer.hypotheses()] == found


def test_the_rule_has_words() -> None:
    assert RELATION.describe(PARAMS) == (
        "recurrent layers and attention go along sequences, and not along the samples"
    )
    assert RELATION.severity(PARAMS) == "warning"
    assert {("sequence", "length"), ("sequence", "number")} <= RELATION.needs(PARAMS).attributes[
        "forward"
    ]
    with pytest.raises(InvariantError, match="about the number of sequences"):
        RELATION.monitor(())
