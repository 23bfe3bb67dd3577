"""Optimizers that are made anew for every step."""

from __future__ import annotations

from tests.relations.loops import failure, holding, told
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.optimizer_kept import STATE, OptimizerKeptRelation

RELATION = OptimizerKeptRelation()
PARAMS = (APIParam(api_full_name="torch.optim.Optimizer.step", role="step"), STATE)


def test_a_new_optimizer_for_every_step() -> None:
    assert holding(RELATION, PARAMS, "new " * 6) == [True, True, True, False, False, False]


def test_healthy_loops_make_new_ones_now_and_then() -> None:
    assert all(holding(RELATION, PARAMS, "step " * 6))
    assert all(holding(RELATION, PARAMS, "step step2 " * 6, num_optimizers=2))
    assert all(holding(RELATION, PARAMS, "new again " * 6))
    assert all(holding(RELATION, PARAMS, "new new new again " * 6))
    assert all(holding(RELATION, PARAMS, "new new gap new new gap new"))


def test_a_step_that_minimises_is_no_example() -> None:
    windows = told("backward backward step " * 2)
    monitor = RELATION.monitor(PARAMS)
    assert [len(monitor.observe(window)) for window in windows] == [2]


def test_the_cause_is_told() -> None:
    cause = failure(RELATION, PARAMS, "new " * 6).cause
    assert cause is not None
    assert "every step is made by a new optimizer: the state" in cause.text
