"""Data for training that is no longer shuffled."""

from __future__ import annotations

import math

import pytest

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import LOADER_FACTS, Window
from traincheck_plugin.relations.shuffled_data import SHUFFLES, ShuffledDataRelation
from traincheck_plugin.vocabulary import Variable

RELATION = ShuffledDataRelation()
PARAMS = (SHUFFLES,)
LOADER, MODEL = "torch.utils.data.DataLoader#0", "__main__.Net#0"


def _run(shuffles: list[float], *, stage: str = "training") -> Window:
    run = RunBuilder()
    run.at(stage=stage)
    facts = run.variables(
        *(Variable(kind="loader", name=n, owner=LOADER, type="float") for n in LOADER_FACTS)
    )
    batch = run.variables(Variable(kind="batch", name="0", owner=LOADER, type="torch.Tensor"))
    given = run.variables(Variable(kind="input", name="0", owner=MODEL, type="torch.Tensor"))
    for number, known in enumerate(shuffles, 1):
        with run.calling("torch.utils.data.DataLoader.__next__", object=LOADER):
            run.frame("end", batch, data=number, value=64)
            run.frame("end", facts, value=[known, 640, 64, 0, number, *[math.nan] * 2])
        with run.calling("__main__.Net.forward", object=MODEL):
            run.frame("end", given, data=number, value=64)
    return run.window()


@pytest.mark.parametrize(
    ("shuffles", "expected"),
    [
        ([1, 1], [True, True]),
        ([0, 0], [False, False]),
        ([math.nan], []),
        ([1, 0], [True, False]),
    ],
)
def test_loaders_that_feed_the_training_are_judged(
    shuffles: list[float], expected: list[bool]
) -> None:
    assert [held for _, held in labels(RELATION, PARAMS, [_run(shuffles)])] == expected


def test_the_cause_is_told() -> None:
    explanation = RELATION.monitor(PARAMS).observe(_run([0])).explain(0)
    assert "in the order that it is in, and shuffles in a healthy run" in explanation.message
    assert explanation.cause is not None
    assert "without shuffle=True" in explanation.cause.text


@pytest.mark.parametrize(("shuffles", "found"), [([1], [PARAMS]), ([0], []), ([math.nan], [])])
def test_what_the_reference_shuffled_is_proposed(shuffles: list[float], found: list) -> None:
    proposer = RELATION.proposer()
    proposer.observe(_run(shuffles))
    assert [hypothesis.params for hypothesis in proposer.hypotheses()] == found


def test_other_parameters_are_refused() -> None:
    with pytest.raises(InvariantError, match="the fact `shuffles` of data loaders"):
        RELATION.monitor(())
