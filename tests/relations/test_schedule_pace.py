"""Schedulers that move faster than the optimizer."""

from __future__ import annotations

import pytest

from tests.relations.labelling import labels
from tests.relations.loops import failure, holding, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam, ConstantParam
from traincheck_plugin.relations.schedule_pace import (
    IN_A_ROW,
    MIN_SKIPPED,
    SCALED,
    SchedulePaceRelation,
)

RELATION = SchedulePaceRelation()
PARAMS = (
    APIParam(api_full_name="torch.optim.Optimizer.step", role="step"),
    APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler"),
)


@pytest.mark.parametrize(
    "words",
    [
        "backward step scheduler " * 6,
        "scheduler " * 5 + "step scheduler " * 3,
        "step step step scheduler " * 3,
        # A step is left out now and then, and the scheduler moves on.
        "step scheduler scheduler step scheduler " * 6,
        "step scheduler forward scheduler step scheduler forward scheduler step scheduler " * 3,
        "step placed placed placed " * 6,
        "step scheduler scheduler gap " * 6,
    ],
)
def test_healthy_schedules(words: str) -> None:
    assert all(holding(RELATION, PARAMS, words))


def test_a_scheduler_that_moves_too_fast() -> None:
    found = holding(RELATION, PARAMS, "step scheduler forward scheduler " * 5)
    assert found == [number < 2 * IN_A_ROW - 1 or number % 2 == 0 for number in range(10)]


def test_a_scheduler_that_moves_twice_at_once() -> None:
    words = "step scheduler scheduler | " * 3
    assert holding(RELATION, PARAMS, words) == [True, True, True, False, True, False]


def test_each_process_may_move_it() -> None:
    assert all(holding(RELATION, PARAMS, "step scheduler scheduler " * 5, world_size=2))
    assert not all(holding(RELATION, PARAMS, ("step " + "scheduler " * 3) * 5, world_size=2))


SPACED = (*PARAMS, ConstantParam(value=2))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("step step | step scheduler | " * 4, [True] * 6),
        ("scheduler " * 3 + "| step | step scheduler | " * 3, [True] * 6),
        # One epoch may be short.
        ("step scheduler | step | step scheduler | step scheduler | step | " * 2, [True] * 9),
        (
            "step scheduler | step | step scheduler | " + "step scheduler | " * 3,
            [True] * 4 + [False],
        ),
        # Which is hardly the first one.
        ("step scheduler | " * 5, [True, False, False, False]),
        (
            "step scheduler | step scheduler | step | step scheduler | step |",
            [True, False, True, True],
        ),
        ("step placed | " * 4, [True] * 3),
        ("step scheduler gap step scheduler gap step scheduler", []),
    ],
)
def test_a_schedule_by_epochs(words: str, expected: list[bool]) -> None:
    assert [held for _, held in labels(RELATION, SPACED, told(words))] == expected


@pytest.mark.parametrize(
    ("words", "found"),
    [("step step scheduler " * 4, [PARAMS, SPACED]), ("step scheduler " * 4, [PARAMS])],
)
def test_what_the_reference_did_is_proposed(words: str, found: list[tuple]) -> None:
    proposer = RELATION.proposer()
    for window in told(words):
        proposer.observe(window)
    assert [hypothesis.params for hypothesis in proposer.hypotheses()] == found


@pytest.mark.parametrize("number", [True, 0, "2"])
def test_a_number_that_is_none_is_refused(number: object) -> None:
    with pytest.raises(InvariantError, match="needs a number of steps"):
        RELATION.monitor((*PARAMS, ConstantParam(value=number)))


def test_the_cause_is_told() -> None:
    explanation = failure(RELATION, SPACED, "step scheduler | " * 5)
    assert "LRScheduler.step was called with each of the last training" in explanation.message
    assert explanation.cause is not None
    assert "stepped with every batch" in explanation.cause.text
    cause = failure(RELATION, PARAMS, "step scheduler scheduler " * 5).cause
    assert cause is not None
    assert "the scheduler is stepped more often than the optimizer" in cause.text


SKIPPING = (SCALED, PARAMS[1])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("skip step scheduler " * 3, [True] * 3),
        ("skip skip made scheduler made scheduler", [True] * 2),
        ("skip scheduler skip scheduler skip scheduler made scheduler", [False, False, True]),
        # Once may be the end of an epoch.
        ("made scheduler skip scheduler made scheduler skip scheduler", [True] * 2),
        ("skip scheduler scheduler scheduler", []),
        ("skip placed skip placed", []),
        ("skip gap scheduler skip gap scheduler", []),
        ("step scheduler", []),
    ],
)
@pytest.mark.parametrize("end", ["", " | "])
def test_schedules_rest_where_a_scaler_skips_a_step(
    words: str, expected: list[bool], end: str
) -> None:
    words = end.join(f"{word} " for word in words.split())
    assert holding(RELATION, SKIPPING, words) == expected


@pytest.mark.parametrize(
    ("words", "is_proposed"),
    [
        ("made scheduler " * 4 + "skip " * MIN_SKIPPED + "made", True),
        ("made scheduler " * 4 + "skip " * MIN_SKIPPED, False),
        ("made scheduler " * 4 + "skip " * 4 + "scheduler made scheduler", False),
        # It does not move with the steps.
        ("made made scheduler " * 4 + "skip " * 4 + "made", False),
    ],
)
def test_that_schedules_rest_is_proposed_where_they_move_with_the_steps(
    words: str, is_proposed: bool
) -> None:
    proposer = RELATION.proposer()
    for window in told(words):
        proposer.observe(window)
    found = [hypothesis.params for hypothesis in proposer.hypotheses()]
    assert (SKIPPING in found) == is_proposed
    assert RELATION.describe(SKIPPING).endswith("after no step that a gradient scaler skipped")


def test_the_cause_of_a_schedule_that_runs_ahead_is_told() -> None:
    explanation = failure(RELATION, SKIPPING, "skip scheduler " * 2)
    assert (
        explanation.message == "StepLR.step was called after steps that the gradient scaler skipped"
    )
    assert explanation.cause is not None
    assert "runs ahead" in explanation.cause.text


def test_a_scaler_needs_no_number() -> None:
    with pytest.raises(InvariantError, match="expects no number with"):
        RELATION.monitor((*SKIPPING, ConstantParam(value=2)))
