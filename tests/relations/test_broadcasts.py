"""Tensors that are expanded otherwise than in the reference, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam
from traincheck_plugin.relations.broadcasts import (
    MAX_WAYS,
    MIN_STEPS,
    BroadcastRelation,
    _way,
)
from traincheck_plugin.relations.losses import FIRST

RELATION = BroadcastRelation()
Shape = tuple[int, ...]
Call = tuple[str, Shape, Shape]
"""Name of a function, and the shapes of its arguments."""

PLACES: Call = ("add", (8, 5, 3), (1, 5, 3))
SAMPLES: Call = ("add", (8, 5, 3), (8, 1, 3))
ALIKE: Call = ("add", (8, 5, 3), (8, 5, 3))
SCALE: Call = ("mul", (8, 3), (3,))


def _rule(*ways: str) -> tuple[ConstantParam]:
    return (ConstantParam(value=ways),)


def _windows(
    steps: Sequence[Sequence[Call]], *, trains: bool = True, averages: bool = False
) -> list[Window]:
    run, windows = RunBuilder(), []
    for step, calls in enumerate(steps):
        run.at(stage="training", step=step, grad_enabled=trains)
        for name, first, second in calls:
            inputs = [tensor("0", shape=first), tensor("1", shape=second)]
            run.call(f"torch.Tensor.{name}", role="function", inputs=inputs)
        run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
        if averages:
            # What follows a step is of the next one, and in the same window.
            run.at(step=step + 1)
            inputs = [tensor("0", shape=(4, 3)), tensor("1", shape=(4, 3))]
            run.call("torch.Tensor.add", role="function", inputs=inputs)
        windows.append(run.window())
    return windows


def _held(rule: tuple[ConstantParam], steps: Sequence[Sequence[Call]], **options: bool) -> list:
    return [held for _, held in labels(RELATION, rule, _windows(steps, **options))]


CALLS = st.lists(st.sampled_from([PLACES, SAMPLES, ALIKE, SCALE]), max_size=4)


@given(st.lists(CALLS, max_size=10))
def test_other_ways_are_told_when_they_stay(steps: list[list[Call]]) -> None:
    expected, num_failed = [], 0
    for calls in steps:
        adds = [call for call in calls if call[0] == "add"]
        if adds:
            num_failed = num_failed + 1 if SAMPLES in adds else 0
            if num_failed != 1:
                expected.append(num_failed == 0)
    assert _held(_rule("add:", "add:>=="), steps) == expected
    assert _held(_rule("add:", "add:>=="), steps, trains=False) == []
    # However windows are joined.
    assert len(_held(_rule("add:", "add:>=="), steps, averages=True)) <= len(steps)


SHAPES = st.lists(st.integers(1, 3), max_size=4).map(tuple)


@given(SHAPES, SHAPES)
def test_a_way_is_how_numpy_broadcasts(first: Shape, second: Shape) -> None:
    found = _way((first, second))
    try:
        both = np.broadcast_shapes(first, second)
    except ValueError:
        return
    if max(first, default=1) == 1 or max(second, default=1) == 1:
        assert found is None
        return
    assert found is not None
    way, shapes = found
    assert shapes == (first, second)
    padded = [(1,) * (len(both) - len(shape)) + shape for shape in shapes]
    expected = "".join(
        "=" if one == other else "<" if one < size else ">"
        for one, other, size in zip(*padded, both, strict=True)
    )
    assert way == ("" if set(expected) == {"="} else expected)


def test_later_steps_are_not_judged() -> None:
    steps = [[PLACES]] * FIRST + [[SAMPLES]] * 3
    assert _held(_rule("add:", "add:>=="), steps) == [True] * FIRST


def _proposed(steps: Sequence[Sequence[Call]]) -> list[object]:
    proposer = RELATION.proposer()
    for window in _windows(steps):
        proposer.observe(window)
    return [hypothesis.params[0].value for hypothesis in proposer.hypotheses()]


def test_the_ways_of_the_reference_are_proposed() -> None:
    steps = [[PLACES, ALIKE, SCALE]] * MIN_STEPS
    assert _proposed(steps) == [("add:", "add:>==", "mul:", "mul:>=")]
    assert _proposed(steps[1:]) == []
    assert _proposed([[ALIKE]] * MIN_STEPS) == [("add:",)]
    many = [("add", (2,) * size, (2,)) for size in range(2, MAX_WAYS + 3)]
    assert _proposed([many] * MIN_STEPS) == []


def test_the_cause_is_told() -> None:
    rule = _rule("add:", "add:>==")
    monitor = RELATION.monitor(rule)
    *_, examples = [monitor.observe(window) for window in _windows([[PLACES, SAMPLES]] * 2)]
    explanation = examples.explain(0)
    assert explanation.message == (
        "add expands tensors of 8 x 5 x 3 and 8 x 1 x 3 to one another, in a way that the "
        "reference has not"
    )
    assert explanation.cause is not None
    assert "along other dimensions" in explanation.cause.text
    assert (
        RELATION.describe(rule) == "what add take is expanded along the dimensions of the reference"
    )
    assert RELATION.severity(rule) == "warning"
    assert RELATION.needs(rule).functions == {"torch.add", "torch.Tensor.add"}


@pytest.mark.parametrize("value", ["add:>==", ("add",), ("relu:>",), ("add:x",), (3,), ()])
def test_other_parameters_are_refused(value: object) -> None:
    with pytest.raises(InvariantError, match="expects functions with ways"):
        RELATION.monitor((ConstantParam(value=value),))
