"""What the losses of one step are multiplied by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relations.loops import failure, holding, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam, ConstantParam
from traincheck_plugin.relations.loss_share import AT_MOST, BY_TENSOR, LossShareRelation
from traincheck_plugin.relations.losses import BACKWARD

RELATION = LossShareRelation()
API = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
WHOLE = "1"
FULL = "backward/2 backward/2 step zero "
SHORT = "backward/2 step zero "


def _holds(total: str, words: str, **options: int) -> list[bool]:
    # The first step of all ends no cycle.
    return holding(RELATION, (API, ConstantParam(value=total)), "step " + words, **options)


@pytest.mark.parametrize(
    ("words", "whole", "at_most"),
    [
        (FULL * 2, [True, True], [True, True]),
        # The last window of an epoch may be a shorter one.
        (FULL + SHORT + FULL, [True] * 3, [True] * 3),
        (SHORT * 2, [True, False], [True] * 2),
        ("backward backward step", [], []),
        ("backward backward/2 step", [False], [False]),
        ("backward/4 backward/4 step", [True], [True]),
        ("backward step zero backward step", [True] * 2, [True] * 2),
        # What was cleared, or skipped, is no part of it.
        ("backward zero backward step", [True], [True]),
        ("backward clear backward step", [True], [True]),
        ("backward skip zero backward step", [True], [True]),
        ("backward gap backward step backward step", [True], [True]),
        ("step", [], []),
        ("backward/nan backward/2 step", [], []),
    ],
)
def test_what_the_shares_add_up_to(words: str, whole: list[bool], at_most: list[bool]) -> None:
    assert _holds(WHOLE, words) == whole
    assert _holds(AT_MOST, words) == at_most


@pytest.mark.parametrize(
    ("total", "words", "expected"),
    [
        ("0.5", "backward/4 backward/4 step zero " * 3, [True] * 3),
        ("0.5", "backward/8 backward/8 step zero " * 3, [True, False, False]),
        ("0.5", "backward/2 backward/2 step zero " * 2, [False] * 2),
        ("0.333333", "backward/6 backward/6 step zero " * 2, [True] * 2),
    ],
)
def test_they_add_up_to_what_they_did(total: str, words: str, expected: list[bool]) -> None:
    assert _holds(total, words) == expected


def test_it_is_told_what_was_expected() -> None:
    half = (API, ConstantParam(value="0.5"))
    explanation = failure(RELATION, half, "step " + "backward/8 backward/8 step zero " * 2)
    assert explanation.message == (
        "SGD.step used gradients of 0.25 times the mean loss of its micro-batches, expected 0.5"
    )
    assert explanation.cause is not None
    assert "too small" in explanation.cause.text


def test_the_first_step_of_a_run_is_judged_too() -> None:
    whole = (API, ConstantParam(value=WHOLE))
    assert holding(RELATION, whole, SHORT * 2) == [True, False]
    # A scaler begins with steps that it skips.
    assert holding(RELATION, whole, "backward/2 skip zero " + FULL) == [True]
    # Where the beginning was missed, the first step tells nothing.
    assert holding(RELATION, whole, "gap " + SHORT * 2) == [True]


def test_two_optimizers_have_shares_of_their_own() -> None:
    turns = "zero backward step zero2 backward step2 " * 3
    assert _holds(WHOLE, "step2 " + turns, num_optimizers=2) == [True] * 6


@pytest.mark.parametrize(
    ("words", "totals"),
    [
        (FULL * 3, {AT_MOST, WHOLE}),
        (FULL * 3 + SHORT, {AT_MOST, WHOLE}),
        ("backward step zero " * 3, set()),
        ("backward backward step zero " * 3, set()),
        ("backward/3 step zero " * 3, set()),
        # Of a loss that is a half of two terms, say.
        ("backward/4 backward/4 step zero " * 3, {"0.5"}),
        ("backward/6 backward/6 step zero " * 3 + "backward/6 step zero", {"0.333333"}),
        ("backward/4 backward/4 step zero backward/2 step zero " * 2, {"0.5"}),
        ("backward/4 backward/4 step zero backward step zero " * 2, set()),
        ("backward/nan backward/nan step zero " * 3, {BY_TENSOR}),
        ("backward/nan backward/nan step zero " * 3 + "backward backward step", set()),
        ("backward/nan step zero " * 3, set()),
    ],
)
def test_what_the_reference_shows_is_proposed(words: str, totals: set[str]) -> None:
    proposer = RELATION.proposer()
    for window in told("step " + words):
        proposer.observe(window)
    assert {h.params[1].value for h in proposer.hypotheses() if len(h.params) == 2} == totals


@pytest.mark.parametrize(("number", "is_proposed"), [(2, False), (3, True), (4, True)])
def test_that_no_loss_is_divided_twice_is_proposed_where_there_are_many(
    number: int, is_proposed: bool
) -> None:
    proposer = RELATION.proposer()
    for window in told("step " + (f"backward/{number} " * number + "step zero ") * 3):
        proposer.observe(window)
    assert ((API,) in {h.params for h in proposer.hypotheses()}) == is_proposed


@pytest.mark.parametrize(
    ("number", "share", "expected"),
    [
        (4, 4, [True] * 3),
        (4, 16, [True, False, False]),
        (3, 9, [True, False, False]),
        # A half of the loss for each of two may be a recipe.
        (2, 4, []),
        # Another part of the loss, the same in each.
        (4, 8, [True] * 3),
        (4, 1, []),
    ],
)
def test_a_loss_that_is_divided_by_its_micro_batches_twice(
    number: int, share: int, expected: list[bool]
) -> None:
    words = (f"backward/{share} " * number + "step zero ") * 3
    assert holding(RELATION, (API,), "step " + words) == expected


def test_a_shorter_window_is_no_loss_that_is_divided_twice() -> None:
    full, short = "backward/16 " * 16 + "step zero ", "backward/16 " * 4 + "step zero "
    assert holding(RELATION, (API,), "step " + (full + short) * 2) == [True] * 4


def test_what_divides_twice_is_told() -> None:
    told_ = failure(RELATION, (API,), "step " + ("backward/16 " * 4 + "step zero ") * 2)
    assert told_.cause is not None
    assert "the loss of each is divided by 16, twice by their number" in told_.cause.text
    assert "divided by its micro-batches twice" in RELATION.describe((API,))


SPREAD = (API, BACKWARD)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("backward/4/4 " * 4 + "step zero ", [True] * 3),
        ("backward/4/4 step zero ", [True, False, False]),
        ("backward/4/4 backward/4/4 step zero ", [True, False, False]),
        # The last window of an epoch is a shorter one.
        ("backward/4/4 " * 4 + "step zero backward/4/4 step zero ", [True] * 6),
        # Two losses for each micro-batch, and a part of the loss.
        ("backward/4/4 " * 8 + "step zero ", [True] * 3),
        ("backward/8/4 step zero ", [True, False, False]),
        # It is set to accumulate, and divides nothing.
        ("backward/1/4 step zero ", []),
        ("backward/2/4 step zero ", []),
        ("backward/1/1 step zero ", [True] * 3),
        # Nothing tells.
        ("backward/4 step zero ", []),
        ("backward/4/4 backward/4 step zero ", []),
    ],
)
def test_as_many_micro_batches_lead_to_a_step_as_divide_its_loss(
    words: str, expected: list[bool]
) -> None:
    assert holding(RELATION, SPREAD, "step " + words * 3) == expected
    proposer = RELATION.proposer()
    for window in told("step " + words * 3):
        proposer.observe(window)
    assert (SPREAD in {h.params for h in proposer.hypotheses()}) == bool(expected)


def test_what_is_not_accumulated_is_told() -> None:
    told_ = failure(RELATION, SPREAD, "step " + "backward/4/4 step zero " * 2)
    assert "0.25 times the mean loss" in told_.message
    assert told_.cause is not None
    assert "since 4 micro-batches are set to be accumulated, and are not" in told_.cause.text
    assert "as the framework divides the loss by" in RELATION.describe(SPREAD)


def test_the_cause_is_told() -> None:
    whole = (API, ConstantParam(value=WHOLE))
    twice = failure(RELATION, whole, "step " + "backward/4 backward/4 step " * 2)
    assert "0.5 times the mean loss" in twice.message
    assert twice.cause is not None
    assert "2 backwards lead to a step, and the loss of each is divided by 4" in twice.cause.text
    more = failure(RELATION, whole, "step backward backward/2 step")
    assert more.cause is not None
    assert "multiplied by 1, 0.5: the gradients are too large" in more.cause.text


BY = "backward/nan backward/nan step zero "
NOT = "backward backward step zero "


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (BY * 2, [True] * 2),
        (BY + NOT + BY, [True] * 3),
        (NOT * 3, [True, False, False]),
        # One that leads to a step by itself is whole, and another constant is for other rules.
        ("backward step zero " * 3, []),
        (FULL * 2, []),
        ("backward/nan backward step zero " * 2, []),
    ],
)
def test_several_losses_that_nothing_divides(words: str, held: list[bool]) -> None:
    assert _holds(BY_TENSOR, words) == held


def test_what_nothing_divides_is_told() -> None:
    by_tensor = (API, ConstantParam(value=BY_TENSOR))
    told_ = failure(RELATION, by_tensor, "step " + NOT * 2)
    assert told_.message == (
        "SGD.step used the sum of 2 losses that nothing divides; in the reference a tensor divides "
        "each"
    )
    assert told_.cause is not None
    assert "not divided by the number of tokens" in told_.cause.text
    assert "is divided by a tensor" in RELATION.describe(by_tensor)


@pytest.mark.parametrize("total", ["0", "-1", "nan", "1.5", "half"])
def test_shares_add_up_to_a_part_of_the_loss(total: str) -> None:
    with pytest.raises(InvariantError, match="knows no sum"):
        RELATION.monitor((API, ConstantParam(value=total)))


def test_it_takes_a_sum_that_it_knows() -> None:
    with pytest.raises(InvariantError, match="knows no sum 2"):
        RELATION.monitor((API, ConstantParam(value=2)))


@given(st.lists(st.sampled_from(["backward", "backward/2", "zero", "step", "skip"]), max_size=40))
def test_sums_are_judged_as_the_formula_says(words: list[str]) -> None:
    expected = []
    was_less = False
    shares: list[float] = []
    for word in words:
        if word.startswith("backward"):
            shares.append(0.5 if "/" in word else 1.0)
            continue
        if word == "step" and shares and (len(shares) == 1 or set(shares) != {1.0}):
            is_less = sum(shares) < 1
            expected.append(sum(shares) == 1 or (is_less and not was_less))
            was_less = is_less
        shares = []
    assert _holds(WHOLE, " ".join(words)) == expected
