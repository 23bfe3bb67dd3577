"""Gradients of batches that are cleared before a step uses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relations.loops import failure, holding
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.gradients_kept import (
    GRADIENTS,
    IN_A_ROW,
    GradientsKeptRelation,
)

RELATION = GradientsKeptRelation()
PARAMS = (APIParam(api_full_name="torch.optim.Optimizer.step", role="step"), GRADIENTS)
BATCH = "data forward backward "


@pytest.mark.parametrize(
    "step",
    [
        "zero data forward backward step ",
        "data forward zero backward data forward backward step ",
        "data forward backward step clear ",
        # Several losses of one batch, and a discriminator that the generator's loss reaches.
        "zero data forward backward forward backward step ",
        "data backward backward zero backward step ",
        # Sharpness-aware: the first gradient of the batch moves the parameters.
        "data forward backward zero forward backward step zero ",
        # An attack on the input, with two loaders.
        "data data2 forward attack backward clear forward backward step zero ",
        "data data2 attack backward data clear forward backward step zero ",
        # A step that the scaler skips uses its batches up.
        "data backward skip zero data backward step zero ",
        # Two loaders, and a method that needs two backwards.
        "data data2 backward zero backward step zero ",
    ],
)
def test_healthy_loops(step: str) -> None:
    assert all(holding(RELATION, PARAMS, step * 8))


@pytest.mark.parametrize(
    "step",
    [
        "data d data d data zero step ".replace("d ", "backward zero ").replace("zero step", "s"),
        "zero data backward zero data backward step ",
        "data by_hand backward data by_hand backward step ",
        "data zero backward data zero backward data zero backward step ",
        # All batches of the step are fetched at once.
        "data data data clear backward clear backward clear backward step ",
    ],
)
def test_gradients_thrown_away(step: str) -> None:
    if step.endswith("s "):
        step = step.replace("s ", "backward step zero ")
    found = holding(RELATION, PARAMS, step * 5)
    assert found == [number < IN_A_ROW - 1 for number in range(5)]


def test_a_batch_may_be_thrown_away_now_and_then() -> None:
    skipping = "data backward zero data backward step zero "
    assert all(holding(RELATION, PARAMS, (skipping * 2 + "data backward step zero ") * 4))


def test_two_optimizers_that_take_turns() -> None:
    gan = "data zero first step backward zero2 second step2 "
    assert all(holding(RELATION, PARAMS, gan * 6, num_optimizers=2))


def test_the_gradients_of_another_optimizer_are_of_use() -> None:
    # The loss of the second reaches the first, which clears what it got; the second accumulates.
    pending = "data zero first step backward data zero first step backward step2 zero2 "
    assert all(holding(RELATION, PARAMS, pending * 6, num_optimizers=2))


def test_after_a_gap_it_begins_anew() -> None:
    bad = "data backward zero data backward step zero "
    assert all(holding(RELATION, PARAMS, (bad * 2 + "gap ") * 4))


def test_the_cause_names_what_cleared() -> None:
    told = failure(RELATION, PARAMS, "data zero backward data zero backward step " * 4)
    assert told.message == "SGD.step used the gradients of 1 of 2 backwards"
    assert told.cause is not None
    assert "cleared by SGD.zero_grad (train.py:1 in train) before the step" in told.cause.text


@given(st.lists(st.sampled_from(["data", "backward", "zero", "step"]), max_size=60))
def test_one_optimizer_is_judged_as_the_formula_says(words: list[str]) -> None:
    """GIVEN one loader and one optimizer THEN a naive count of lost backwards agrees."""
    expected, missing = [], 0
    here, lost, num_deliveries, backwards = 0, 0, 0, 0
    pending, at_once, was_delivered = 0, 0, False
    for word in words:
        if word == "data":
            was_delivered = True
            num_deliveries += backwards == 0
        elif word == "backward":
            if was_delivered:
                lost += pending
            else:
                at_once += pending
            pending, was_delivered = 0, False
            here += 1
            backwards += 1
        elif word == "zero":
            pending, here = pending + here, 0
        else:
            if here:
                total = lost + (at_once if num_deliveries == backwards else 0)
                missing = missing + 1 if total else 0
                expected.append(missing < IN_A_ROW)
            pending = here = lost = at_once = num_deliveries = backwards = 0
            was_delivered = False
    assert holding(RELATION, PARAMS, " ".join(words)) == expected
