"""Steps that use the gradients of the step before again."""

from __future__ import annotations

import pytest

from tests.relations.loops import failure, holding
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.new_gradients import GRADIENTS, NewGradientsRelation

RELATION = NewGradientsRelation()
PARAMS = (APIParam(api_full_name="torch.optim.Optimizer.step", role="step"), GRADIENTS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("backward step zero backward step", [True]),
        ("backward step step", [False]),
        ("backward step step step", [False, False]),
        # Once may be the end of a pass that only looks at the data.
        ("backward step forward forward step", []),
        ("backward step | forward step | forward step", [False]),
        ("backward step set step", [True]),
        ("backward step zero step step backward step", []),
        ("backward step gap step", []),
        ("backward step backward step step", [True, False]),
    ],
)
def test_a_step_needs_a_backward_or_other_gradients(words: str, expected: list[bool]) -> None:
    assert holding(RELATION, PARAMS, words) == expected


def test_each_optimizer_has_its_own_previous_step() -> None:
    assert holding(RELATION, PARAMS, "backward step step2 " * 3, num_optimizers=2) == [True] * 4


def test_the_cause_is_told() -> None:
    told = failure(RELATION, PARAMS, "backward step step")
    assert told.message == "SGD.step used the gradients of the previous step again"
    assert told.cause is not None
    assert "stepped twice, with no backward in between" in told.cause.text
