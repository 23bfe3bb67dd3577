"""Losses that go backward more than once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relations.loops import failure, holding
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.new_loss import GRADIENTS, NewLossRelation

RELATION = NewLossRelation()
PARAMS = (APIParam(api_full_name="torch.Tensor.backward", role="backward"), GRADIENTS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("backward step zero backward step", [True, True]),
        ("backward backward/2 step", [True, True]),
        ("backward repeated step", [True, False]),
        ("backward step repeated step2", [True, False]),
        ("backward step | repeated step2", [True, False]),
        # For a measurement.
        ("backward zero repeated step", [True]),
        ("backward clear | repeated step", [True]),
        ("backward by_hand repeated step", [True]),
        ("backward gap repeated step", [True]),
    ],
)
def test_a_loss_goes_backward_once(words: str, expected: list[bool]) -> None:
    assert holding(RELATION, PARAMS, words, num_optimizers=2) == expected


@given(st.lists(st.sampled_from(["backward", "repeated", "zero", "by_hand", "step", "|"])))
def test_backwards_are_judged_as_the_formula_says(words: list[str]) -> None:
    expected, has, is_cleared = [], False, False
    for word in words:
        if word in ("zero", "by_hand"):
            has = False
            is_cleared |= word == "zero"
        elif word in ("backward", "repeated"):
            if word == "backward":
                expected.append(True)
            elif has and not is_cleared:
                expected.append(False)
            has, is_cleared = True, False
    assert holding(RELATION, PARAMS, " ".join(words)) == expected


def test_the_cause_is_told() -> None:
    told = failure(RELATION, PARAMS, "backward repeated step")
    assert told.message == (
        "Tensor.backward went through a loss that an earlier backward (train.py:1 in train) went "
        "through"
    )
    assert told.cause is not None
    assert "one loss goes backward twice" in told.cause.text
