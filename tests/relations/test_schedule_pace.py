"""Schedulers that move faster than the optimizer."""

from __future__ import annotations

import pytest

from tests.relations.loops import failure, holding
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.schedule_pace import IN_A_ROW, SchedulePaceRelation

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
        "step scheduler scheduler step scheduler scheduler step scheduler " * 3,
        "step placed placed placed " * 6,
        "step scheduler scheduler gap " * 6,
    ],
)
def test_healthy_schedules(words: str) -> None:
    assert all(holding(RELATION, PARAMS, words))


def test_a_scheduler_that_moves_too_fast() -> None:
    found = holding(RELATION, PARAMS, "step scheduler scheduler " * 5)
    assert found == [number < 2 * IN_A_ROW - 1 or number % 2 == 0 for number in range(10)]


def test_each_process_may_move_it() -> None:
    assert all(holding(RELATION, PARAMS, "step scheduler scheduler " * 5, world_size=2))
    assert not all(holding(RELATION, PARAMS, ("step " + "scheduler " * 3) * 5, world_size=2))


def test_the_cause_is_told() -> None:
    cause = failure(RELATION, PARAMS, "step scheduler scheduler " * 5).cause
    assert cause is not None
    assert "the scheduler is stepped more often than the optimizer" in cause.text
