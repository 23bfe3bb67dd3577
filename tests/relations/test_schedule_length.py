"""Schedules that are made for all steps, and how often they are moved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param
from traincheck_plugin.relations.schedule_length import (
    MAX_PART,
    MIN_LENGTH,
    TOLERANCE,
    ScheduleLengthRelation,
)
from traincheck_plugin.stacks import stretches
from traincheck_plugin.vocabulary import Item

RELATION = ScheduleLengthRelation()
STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
MOVED = APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler")
PARAMS: tuple[Param, ...] = (STEP, MOVED)
NAME = "torch.optim.lr_scheduler.OneCycleLR"


def _run(
    num_steps: int, every: int, length: int | None, *, other: int = 0, placed: bool = False
) -> list[Window]:
    """Return a run whose scheduler moves with *every* so many of its steps."""
    run = RunBuilder()
    outputs = [Item(path="length", type="str", value=str(length))] if length is not None else []
    about = [Item(path="optimizer", type="str", value="torch.optim.SGD#0")]
    windows = []
    for step in range(1, num_steps + 1):
        run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
        for _ in range(other):
            run.call("torch.optim.SGD.step", object="torch.optim.SGD#1")
        if step % every == 0:
            inputs = about + [Item(path="epoch", type="int")] * placed
            run.call(f"{NAME}.step", object=f"{NAME}#0", inputs=inputs, outputs=outputs)
        windows.append(run.window())
        run.at(step=step)
    return windows


def _fails(windows: list[Window]) -> bool:
    results = []
    for several in (windows, list(stretches(windows))):
        monitor = RELATION.monitor(PARAMS)
        for window in several:
            assert monitor.observe(window).holds.all()
        results.append(len(monitor.finish()) > 0)
    assert results[0] == results[1]
    return results[0]


@given(
    st.integers(1, 70),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(1, 70)),
    st.integers(0, 1),
)
def test_a_schedule_as_long_as_the_run_moves_with_it(
    num_steps: int, every: int, length: int | None, other: int
) -> None:
    moves = num_steps // every
    expected = (
        length is not None
        and length >= MIN_LENGTH
        and moves > 0
        and abs(num_steps - length) <= TOLERANCE * length
        and moves <= MAX_PART * length
    )
    assert _fails(_run(num_steps, every, length, other=other)) == expected


def test_nothing_is_said_of_a_run_that_was_not_seen_or_goes_on() -> None:
    assert _fails(_run(60, 10, 60))
    assert not _fails(_run(60, 10, 60, placed=True))
    run = RunBuilder()
    left_out = run.window(observed=False)
    monitor = RELATION.monitor(PARAMS)
    for window in [left_out, *_run(60, 10, 60)]:
        monitor.observe(window)
    assert not len(monitor.finish())


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(PARAMS)
    for window in _run(60, 10, 60):
        monitor.observe(window)
    explanation = monitor.finish().explain(0)
    assert explanation.message == (
        "LRScheduler.step was called 6 times of 60 that its schedule is made for, and SGD#0 made "
        "60 steps"
    )
    assert explanation.cause is not None
    assert "moved more rarely, such as once in an epoch" in explanation.cause.text


@pytest.mark.parametrize("length", [60, None])
def test_the_rule_is_proposed_and_has_words(length: int | None) -> None:
    proposer = RELATION.proposer()
    for window in _run(60, 10, length):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == [Hypothesis(relation=RELATION.name, params=PARAMS)]
    assert RELATION.describe(PARAMS) == (
        "a schedule that is as long as there are calls of Optimizer.step sees as many of "
        "LRScheduler.step"
    )
    assert RELATION.severity(PARAMS) == "warning"
