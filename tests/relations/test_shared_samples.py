"""Forwards of a step that are given one batch in place of two, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam
from traincheck_plugin.relations.shared_samples import (
    MAX_FORWARDS,
    MIN_SAMPLES,
    MIN_STEPS,
    SharedSamplesRelation,
)
from traincheck_plugin.vocabulary import Variable

RELATION = SharedSamplesRelation()

Forward = tuple[str, int]
"""Class of a model, and a number for what it is given."""

BOTH = ("Net", "Target")


def _rule(roots: Sequence[str], pattern: Sequence[int]) -> tuple[ConstantParam]:
    return (ConstantParam(value=(tuple(roots), tuple(pattern))),)


def _windows(steps: Sequence[Sequence[Forward]], *, size: int = MIN_SAMPLES) -> list[Window]:
    run, windows = RunBuilder(), []
    for number, forwards in enumerate(steps):
        run.at(step=number, stage="training")
        for place, (root, batch) in enumerate(forwards):
            owner = f"__main__.{root}#0"
            codes = run.variables(
                Variable(kind="sample", name="0", owner=owner, type="torch.float32")
            )
            with run.calling(f"__main__.{root}.forward", role="forward", object=owner):
                keys = [100 * batch + key for key in range(1, size + 1)]
                run.frame("end", np.repeat(codes, size), data=keys)
            if place == 0:
                # What is done before the training forward may be a window of its own.
                windows.append(run.window())
        run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
        windows.append(run.window())
    return windows


FORWARDS = st.lists(st.tuples(st.sampled_from(BOTH), st.integers(1, 2)), max_size=3) | st.tuples(
    st.integers(1, 2), st.integers(1, 2)
).map(lambda both: [("Net", both[0]), ("Target", both[1])])


@given(st.lists(FORWARDS, max_size=10))
def test_what_is_given_twice_is_told_when_it_stays(steps: list[list[Forward]]) -> None:
    expected, num_failed = [], 0
    for forwards in steps:
        if tuple(root for root, _ in forwards) == BOTH:
            num_failed = num_failed + 1 if forwards[0][1] == forwards[1][1] else 0
            if num_failed != 1:
                expected.append(num_failed == 0)
    found = [held for _, held in labels(RELATION, _rule(BOTH, (0, 1)), _windows(steps))]
    assert found == expected


def test_what_was_the_same_may_differ() -> None:
    rule = _rule(["Net", "Net", "Target"], (0, 1, 1))
    steps = [[("Net", 1), ("Net", 2), ("Target", 3)]] * 3
    assert [held for _, held in labels(RELATION, rule, _windows(steps))] == [True] * 3
    same = [[("Net", 1), ("Net", 1), ("Target", 1)]] * 3
    assert [held for _, held in labels(RELATION, rule, _windows(same))] == [False] * 2


def _proposed(steps: Sequence[Sequence[Forward]], **options: int) -> list[object]:
    proposer = RELATION.proposer()
    for window in _windows(steps, **options):
        proposer.observe(window)
    return [hypothesis.params[0].value for hypothesis in proposer.hypotheses()]


def test_the_reference_shows_what_is_different() -> None:
    differ = [[("Net", 1), ("Net", 2), ("Target", 2)]] * MIN_STEPS
    assert _proposed(differ) == [(("Net", "Net", "Target"), (0, 1, 1))]
    assert _proposed(differ[1:]) == []
    assert _proposed([*differ, [("Net", 2), ("Net", 2), ("Target", 2)]]) == []
    assert _proposed([[("Net", 1), ("Target", 1)]] * MIN_STEPS) == []
    assert _proposed([[("Net", n) for n in range(MAX_FORWARDS + 1)]] * MIN_STEPS) == []
    assert _proposed(differ, size=MIN_SAMPLES - 1) == []


def test_the_cause_is_told() -> None:
    rule = _rule(BOTH, (0, 1))
    monitor = RELATION.monitor(rule)
    windows = _windows([[("Net", 1), ("Target", 1)]] * 2)
    *_, examples = [monitor.observe(window) for window in windows]
    explanation = examples.explain(0)
    assert explanation.message == (
        "Net and Target are given the same samples in the forwards 1 and 2 of a step; in the "
        "reference others"
    )
    assert explanation.cause is not None
    assert "one is the memory of the other" in explanation.cause.text
    assert RELATION.describe(rule) == "the 2 forwards of a step, of Net, Target, have 2 inputs"
    assert RELATION.severity(rule) == "warning"


@pytest.mark.parametrize(
    "value", ["Net", (BOTH, (0,)), (BOTH, (0, 2)), (("Net",), (0,)), ((1, 2), (0, 1)), (BOTH, "ab")]
)
def test_other_parameters_are_refused(value: object) -> None:
    with pytest.raises(InvariantError, match="expects classes"):
        RELATION.monitor((ConstantParam(value=value),))
