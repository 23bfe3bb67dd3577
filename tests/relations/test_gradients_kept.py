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
        "data backward/2 skip zero data backward/2 step zero ",
        # A batch and what is made of it, several losses of one batch, and no more than one batch.
        "zero fresh backward/2 zero fresh backward/2 step ",
        "zero fresh backward/3 zero forward backward/3 zero forward backward/3 step ",
        "data zero fresh backward/3 zero fresh backward/3 zero fresh backward/3 step ",
        # What a model returns of one batch is another each time that it has learned.
        "forward derived backward/3 zero forward derived backward/3 zero "
        "forward derived backward/3 step ",
        # Batches of which no loader tells, and nothing is cleared, or none is a part.
        "zero fresh backward/3 fresh backward/3 fresh backward/3 step ",
        "zero fresh backward zero fresh backward zero fresh backward step ",
        # Two loaders, and a method that needs two backwards.
        "data data2 backward zero backward step zero ",
    ],
)
def test_healthy_loops(step: str) -> None:
    assert all(holding(RELATION, PARAMS, step * 8))


@pytest.mark.parametrize(
    "step",
    [
        "data backward/4 zero data backward/4 zero data backward/4 step ",
        "zero data backward/2 zero data backward/2 step ",
        "data by_hand backward/2 data by_hand backward/2 step ",
        "data zero backward/3 data zero backward/3 data zero backward/3 step ",
        # All batches are fetched first.
        "data data zero backward/2 zero backward/2 step ",
        # No loader delivers them.
        "zero fresh backward/3 zero fresh backward/3 zero fresh backward/3 step ",
    ],
)
def test_gradients_thrown_away(step: str) -> None:
    found = holding(RELATION, PARAMS, step * 5)
    assert found == [number < IN_A_ROW - 1 for number in range(5)]


@pytest.mark.parametrize(
    "step",
    [
        # Each task has a loader, and the gradients of all are combined by hand.
        "data backward zero data2 backward set step zero ",
        # All batches are fetched first, and their gradients are computed for another purpose.
        "data data data backward/3 backward/3 zero backward/3 backward/3 step zero ",
    ],
)
def test_gradients_that_are_put_to_another_use(step: str) -> None:
    assert all(holding(RELATION, PARAMS, step * 5))


def test_a_batch_may_be_thrown_away_now_and_then() -> None:
    skipping = "data backward/2 zero data backward/2 step zero "
    assert all(holding(RELATION, PARAMS, (skipping * 2 + "data backward/2 step zero ") * 4))


def test_two_optimizers_that_take_turns() -> None:
    gan = "data zero first step backward zero2 second step2 "
    assert all(holding(RELATION, PARAMS, gan * 6, num_optimizers=2))


def test_the_gradients_of_another_optimizer_are_of_use() -> None:
    # The loss of the second reaches the first, which clears what it got; the second accumulates.
    pending = "data zero first step backward/2 data zero first step backward/2 step2 zero2 "
    assert all(holding(RELATION, PARAMS, pending * 6, num_optimizers=2))


def test_after_a_gap_it_begins_anew() -> None:
    bad = "data backward/2 zero data backward/2 step zero "
    assert all(holding(RELATION, PARAMS, (bad * 2 + "gap ") * 4))


def test_the_cause_names_what_cleared() -> None:
    told = failure(RELATION, PARAMS, "data zero backward/2 data zero backward/2 step " * 4)
    assert told.message == "SGD.step used the gradients of 1 of 2 backwards"
    assert told.cause is not None
    assert "cleared by SGD.zero_grad (train.py:1 in train) before the step" in told.cause.text


WORDS = ["data", "backward", "backward/2", "zero", "step"]


@given(st.lists(st.sampled_from(WORDS), max_size=60))
def test_one_optimizer_is_judged_as_the_formula_says(words: list[str]) -> None:
    """GIVEN one loader and one optimizer THEN a naive count of lost backwards agrees."""
    expected, missing = [], 0
    has, there, gone, lost, was_delivered = False, 0, 0, 0, False
    replaced = num_delivered = num_backwards = 0
    for word in words:
        if word == "data":
            was_delivered = True
            num_delivered += 1
        elif word.startswith("backward"):
            lost += gone if was_delivered else 0
            replaced += 0 if was_delivered else gone
            num_backwards += 1
            gone, was_delivered, has = 0, False, True
            there += word == "backward/2"
        elif word == "zero":
            gone, there, has = gone + there, 0, False
        else:
            if has:
                lost += replaced if num_delivered >= num_backwards else 0
                missing = missing + 1 if lost else 0
                expected.append(missing < IN_A_ROW)
            has, there, gone, lost, was_delivered = False, 0, 0, 0, False
            replaced = num_delivered = num_backwards = 0
    assert holding(RELATION, PARAMS, " ".join(words)) == expected


def test_what_another_optimizer_is_about_to_use_is_no_sign() -> None:
    step = "zero2 " + "data zero first/2 second/4 " * 2 + "step step2 "
    found = holding(RELATION, PARAMS, step * 5, num_optimizers=2)
    assert found == [number < IN_A_ROW - 1 for number in range(5)]
    # Those of the second one are all there.
    step = "zero2 " + "data zero first/2 second/4 " * 2 + "step2 "
    assert all(holding(RELATION, PARAMS, step * 5, num_optimizers=2))
