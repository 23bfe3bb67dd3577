"""Gradients that are left from the loss of another optimizer."""

from __future__ import annotations

import pytest

from tests.relations.loops import failure, holding, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import VAR_TYPES, VarNameParam
from traincheck_plugin.relations.unmixed_gradients import UnmixedGradientsRelation

RELATION = UnmixedGradientsRelation()
PARAMS = (VarNameParam(var_name="Net", var_type=VAR_TYPES["parameter"], attr_name="grad_norm"),)

HEALTHY = "zero first step zero2 backward step2 "
"""A discriminator, then its generator through it."""

LEFT = "zero zero2 backward step second step2 "
"""What is generated is not detached in the loss of the discriminator."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (HEALTHY * 2, [True] * 3),
        (LEFT * 2, [False, True, False]),
        # It is cleared in between, by whatever.
        ("zero backward step zero2 second step2 " * 2, [True] * 3),
        ("zero backward step by_hand second step2 " * 2, [True] * 3),
        ("clear backward step clear second step2 " * 2, [True] * 3),
        # Nothing is added to what is left.
        ("zero zero2 backward step step2 " * 2, [True] * 3),
        # What was used by a step of its own is another rule's business.
        ("zero zero2 backward step step2 zero first step second step2", [True, True, True]),
        # Several losses before all steps are one for each.
        ("zero zero2 first second backward step step2 " * 2, [True] * 3),
        ("zero backward step " * 3, []),
        ("zero zero2 backward step gap second step2 zero first step", [True]),
    ],
)  # fmt: skip
def test_gradients_from_before_and_after_another_step(words: str, expected: list[bool]) -> None:
    assert holding(RELATION, PARAMS, words, num_optimizers=2) == expected


def test_one_optimizer_has_none_to_mix_with() -> None:
    assert holding(RELATION, PARAMS, LEFT * 3) == []


def test_models_of_other_classes_are_left_to_other_rules() -> None:
    [param] = PARAMS
    other = (VarNameParam(var_name="Critic", var_type=param.var_type, attr_name="grad_norm"),)
    assert holding(RELATION, other, LEFT * 3, num_optimizers=2) == []


def test_it_is_proposed_where_there_are_several_optimizers() -> None:
    for number, expected in ((1, []), (2, [PARAMS])):
        proposer = RELATION.proposer()
        for window in told(HEALTHY if number == 2 else "zero backward step", num_optimizers=number):
            proposer.observe(window)
        assert [hypothesis.params for hypothesis in proposer.hypotheses()] == expected


@pytest.mark.parametrize("params", [(), PARAMS * 2])
def test_other_parameters_are_refused(params: tuple[VarNameParam, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the class of a model"):
        RELATION.describe(params)


def test_the_cause_is_told() -> None:
    explanation = failure(RELATION, PARAMS, LEFT * 2, num_optimizers=2)
    assert explanation.message == (
        "SGD.step used gradients of `bias` that were left when another optimizer stepped, and "
        "those of a later backward"
    )
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("bias",)
    assert "zero_grad is called too early" in explanation.cause.text
