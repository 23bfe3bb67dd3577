"""Gradients in a foreign scale."""

from __future__ import annotations

import pytest

from tests.relations.loops import failure, holding
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.loss_scaling import LossScalingRelation

RELATION = LossScalingRelation()
STEP = (APIParam(api_full_name="torch.optim.Optimizer.step", role="step"),)
CLIP = (APIParam(api_full_name="torch.nn.utils.clip_grad_norm_", role="clip"),)


@pytest.mark.parametrize(
    ("words", "clip", "step"),
    [
        ("forward backward clip step", [True], [True]),
        ("half scaled backward unscaled clip step plain", [True], [True]),
        ("half scaled backward clip unscaled step plain", [False], [True]),
        ("half scaled backward clip step plain", [False], [False]),
        ("half disabled backward clip step plain", [False], [False]),
        ("forward disabled backward clip step plain", [True], [True]),
        # The half of an earlier step says nothing about this one.
        ("half backward step forward disabled backward step plain", [], [True, True]),
        ("half gap disabled clip step", [True], [True]),
    ],
)
def test_what_clipping_and_the_step_meet(words: str, clip: list[bool], step: list[bool]) -> None:
    assert holding(RELATION, CLIP, words) == clip
    assert holding(RELATION, STEP, words) == step


def test_the_causes_are_told() -> None:
    scaled = failure(RELATION, CLIP, "half scaled backward clip").cause
    disabled = failure(RELATION, STEP, "half disabled backward step").cause
    assert scaled is not None
    assert "still scaled: unscale_ was not called" in scaled.text
    assert disabled is not None
    assert "the GradScaler is disabled" in disabled.text


def test_it_takes_one_api() -> None:
    with pytest.raises(InvariantError, match="expects one APIParam"):
        RELATION.monitor(())
