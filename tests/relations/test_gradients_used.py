"""Gradients that are cleared without any step of their optimizer."""

from __future__ import annotations

import pytest

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from tests.relations.loops import failure, holding, told
from traincheck_plugin.invariants.model import APIParam, ConstantParam
from traincheck_plugin.relations.gradients_used import CLEARED, GradientsUsedRelation

RELATION = GradientsUsedRelation()
OF_OPTIMIZER = APIParam(api_full_name="torch.optim.Optimizer.zero_grad", role="zero_grad")
OF_MODULE = APIParam(api_full_name="torch.nn.Module.zero_grad", role="zero_grad")
PARAMS = (OF_OPTIMIZER, CLEARED, ConstantParam(value=1))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("zero zero2 backward step step2 zero zero2", [True, True]),
        ("zero zero2 backward step zero zero2", []),
        ("zero zero2 backward step zero zero2 backward step zero zero2", [False]),
        # The other one steps only: a step of the first would have been due.
        ("zero first step2 zero first step2 zero", [False]),
        # Gradients are thrown away, and nobody steps.
        ("zero zero2 backward zero zero2 backward zero zero2", []),
        # By-products are cleared at once, and before they are needed.
        ("zero zero2 backward step zero zero2 backward step2 zero zero2 backward step", []),
        # One alone proves nothing.
        ("zero backward step zero backward step zero", []),
        ("zero zero2 backward skip step2 zero zero2 backward skip step2 zero", [True] * 2),
        ("zero2 second step gap zero2 second step zero2", []),
    ],
)
def test_cleared_gradients_were_used(words: str, expected: list[bool]) -> None:
    assert holding(RELATION, PARAMS, words, num_optimizers=2) == expected


def test_a_model_clears_the_gradients_of_all_its_optimizers() -> None:
    words = "clear backward step step2 " * 2 + "clear backward step " * 3 + "clear"
    params = (OF_MODULE, *PARAMS[1:])
    assert holding(RELATION, params, words, num_optimizers=2).count(False) == 2


@pytest.mark.parametrize(("inner", "is_one"), [("weight", True), ("other", False)])
def test_an_optimizer_may_have_another_one_step_in_its_place(inner: str, is_one: bool) -> None:
    run = RunBuilder()
    parameters, stepped = run.parameters("weight"), run.parameters(inner)
    for _ in range(4):
        with run.calling("torch.optim.Adam.zero_grad", object="torch.optim.Adam#0"):
            run.frame("begin", parameters, grad=2, optimizer="torch.optim.Adam#0")
        with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
            run.frame("begin", stepped, optimizer="torch.optim.SGD#0")
    found = [held for _, held in labels(RELATION, PARAMS, [run.window()])]
    assert found == ([] if is_one else [False] * 2)


def test_the_cause_is_told() -> None:
    explanation = failure(RELATION, PARAMS, "zero2 second step " * 3 + "zero2", num_optimizers=2)
    assert "cleared 2 times in a row and it did not step, while another" in explanation.message
    assert explanation.cause is not None
    assert "is not stepped" in explanation.cause.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("zero zero2 backward step zero zero2 backward step zero zero2", [False] * 2),
        # Once may be a batch that is left out.
        ("zero2 both zero2 second step zero2", [True]),
        ("zero2 both zero2 second step zero2 second step zero2", [True, False]),
        ("zero2 second step zero2 both zero2 second step zero2", [False, True]),
    ],
)
def test_the_first_gradients_are_used_where_all_were(words: str, expected: list[bool]) -> None:
    words = words.replace("both", "second step2 step")
    params = (*PARAMS[:2], ConstantParam(value=0))
    assert holding(RELATION, params, words, num_optimizers=2) == expected
    assert (
        "before it had stepped at all"
        in failure(RELATION, params, "zero2 second step " * 3 + "zero2", num_optimizers=2).message
    )


@pytest.mark.parametrize(("num_steps", "numbers"), [(1, [0, None]), (5, [4, None]), (15, [14])])
def test_a_critic_may_step_more_often(num_steps: int, numbers: list[int]) -> None:
    words = ("zero zero2 backward step " * num_steps + "step2 ") * 4
    proposer = RELATION.proposer()
    for window in told(words, num_optimizers=2):
        proposer.observe(window)
    found = [hypothesis.params for hypothesis in proposer.hypotheses()]
    assert found == [
        (*PARAMS[:2], *([] if n is None else [ConstantParam(value=n)])) for n in numbers
    ]
    for params in found:
        assert all(holding(RELATION, params, words, num_optimizers=2))


def test_ten_in_a_row_are_too_many_anywhere() -> None:
    words = "zero zero2 backward step " * 13
    assert holding(RELATION, PARAMS[:2], words, num_optimizers=2) == [False] * 2
