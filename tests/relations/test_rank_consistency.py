"""Replicated variables: what has to be equal on all ranks, against a naive reference."""

from __future__ import annotations

import math
import random

import pytest

from tests.builders import RunBuilder
from traincheck_plugin.checker.ranks import StepMerger
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import VAR_TYPES, VarNameParam, VarTypeParam
from traincheck_plugin.relations.rank_consistency import (
    EQUAL_BEFORE,
    REPLICATED,
    SAME_GRADIENTS,
    RankConsistencyRelation,
)
from traincheck_plugin.vocabulary import Placement

RELATION = RankConsistencyRelation()
EVERY = VarTypeParam(var_type=VAR_TYPES["parameter"], attr_name="data", quantifier="every")


def where(condition):
    return VarTypeParam(
        var_type=EVERY.var_type, attr_name="data", quantifier="every", where=(condition,)
    )


def steps_of(values, *, names=("a", "b"), placement=Placement.UNKNOWN, norms=None):
    """Return the windows of steps in which rank r has ``values[step][r]`` of the parameters.

    None in place of the values of a rank means that it has ended.
    """
    num_ranks = len(values[0])
    runs = [RunBuilder(rank=rank, world_size=num_ranks) for rank in range(num_ranks)]
    merger = StepMerger(range(num_ranks))
    windows = []
    for step, ranks in enumerate(values):
        for rank, row in enumerate(ranks):
            if row is None:
                windows += merger.finish(rank)
                continue
            run = runs[rank]
            run.at(stage="training", step=step)
            parameters = run.parameters(*names)
            with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
                norm = 1.0 if norms is None else norms[step][rank]
                run.frame("begin", parameters, grad_norm=norm)
                run.frame("end", parameters, data=row, placement=placement)
            windows += merger.add(rank, run.window())
    return windows


def labels(param, windows):
    monitor = RELATION.monitor((param,))
    return [bool(hold) for window in windows for hold in monitor.observe(window).holds]


def failures(param, windows):
    monitor = RELATION.monitor((param,))
    found = []
    for window in windows:
        examples = monitor.observe(window)
        found += [examples.explain(row) for row in range(len(examples)) if not examples.holds[row]]
    return found


def proposed(*runs):
    proposer = RELATION.proposer()
    for windows in runs:
        for window in windows:
            proposer.observe(window)
    return {hypothesis.params[0] for hypothesis in proposer.hypotheses()}


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_those_of_a_naive_reference(seed):
    chance = random.Random(seed)  # noqa: S311
    values = []
    for step in range(8):
        common = [10 * step + 1, 10 * step + chance.choice([2, 2, 3])]
        values.append(
            [
                [v if chance.random() < 0.9 else 1000 + chance.randrange(99) for v in common]
                for _ in range(3)
            ]
        )
    equal = [
        [len({ranks[r][column] for r in range(3)}) == 1 for column in range(2)] for ranks in values
    ]
    windows = steps_of(values)

    assert labels(EVERY, windows) == [all(row) for row in equal]
    named = VarNameParam(var_name="b", var_type=EVERY.var_type, attr_name="data")
    assert labels(named, windows) == [row[1] for row in equal]

    expected, joined, differed = [], set(), set()
    for step, row in enumerate(equal):
        if joined:
            expected.append(all(row[column] for column in joined))
        for column in range(2):
            first = min(ranks[column] for ranks in values[0])
            if not row[column] and column not in joined:
                differed.add(column)
            if step and column not in differed and values[step][0][column] != first:
                joined.add(column)
    assert labels(where(EQUAL_BEFORE), windows) == expected


def test_only_what_is_replicated_by_its_wrapper_has_to_be_equal_from_the_first_step_on():
    values = [[[1, 2], [1, 3]]]

    assert labels(where(REPLICATED), steps_of(values)) == []
    assert labels(where(REPLICATED), steps_of(values, placement=Placement.REPLICATED)) == [False]
    assert labels(where(REPLICATED), steps_of(values, placement=Placement.LOCAL)) == []


def test_what_is_meant_to_differ_is_left_alone():
    alike = [[[1, 1], [1, 1]], [[2, 2], [2, 2]], [[3, 3], [4, 4]]]

    assert labels(where(EQUAL_BEFORE), steps_of(alike)) == [False]
    assert labels(where(EQUAL_BEFORE), steps_of(alike, placement=Placement.LOCAL)) == []
    assert labels(EVERY, steps_of(alike, placement=Placement.LOCAL)) == []


def test_shards_that_begin_alike_are_not_taken_for_replicas():
    shards = [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 2], [3, 4]], [[5, 6], [7, 8]]]

    assert labels(where(EQUAL_BEFORE), steps_of(shards)) == []


def test_what_is_averaged_from_time_to_time_is_not_taken_for_replicas():
    averaged = [[[step], [step if step % 3 == 2 else step + 1]] for step in range(12)]

    assert labels(where(EQUAL_BEFORE), steps_of(averaged, names=("a",))) == []


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([[1.0, 2.0], [1.0, 2.0]], [False]),
        ([[1.0, 2.0], [1.0, 2.5]], []),
        # No gradient, and one number that is the same whatever the data is.
        ([[1.0, math.nan], [1.0, math.nan]], []),
        ([[1.0, 0.0], [1.0, 0.0]], []),
        ([[1.0, 1.0], [1.0, 1.0]], []),
    ],
)
def test_parameters_whose_gradients_are_averaged_are_to_be_equal(norms, expected):
    differ, equal = [[[1, 2], [1, 3]]], [[[1, 2], [1, 2]]]

    assert labels(where(SAME_GRADIENTS), steps_of(differ, norms=[norms])) == expected
    held = [True] * len(expected)
    assert labels(where(SAME_GRADIENTS), steps_of(equal, norms=[norms])) == held
    local = steps_of(differ, norms=[norms], placement=Placement.LOCAL)
    assert labels(where(SAME_GRADIENTS), local) == []
    assert (where(SAME_GRADIENTS) in proposed(steps_of(equal, norms=[norms]))) == bool(expected)
    assert "where all gradients are" in RELATION.describe((where(SAME_GRADIENTS),))


def test_a_rank_alone_is_compared_with_nobody():
    values = [[[1, 1], [1, 1]], [[2, 2], None], [[3, 3]]]

    assert labels(EVERY, steps_of(values)) == [True]


def test_the_minority_and_the_variables_are_named():
    [explanation] = failures(EVERY, steps_of([[[1, 2], [1, 2], [1, 9], [1, 2]]]))

    assert explanation.message == (
        "1 of 2 parameters differ between ranks after SGD.step: rank 2 differs from ranks 0, 1, 3"
    )
    assert explanation.cause.fact == "replicas differ"
    assert explanation.cause.subjects == ("b",)
    assert explanation.cause.text == (
        "`b` differ between ranks: rank 2 differs from ranks 0, 1, 3; their gradients were equal: "
        "the updates, or the values before them, differ"
    )


def test_the_violation_is_on_a_rank_of_the_minority():
    windows = steps_of([[[1, 2], [1, 2], [1, 9], [1, 2]]])
    examples = RELATION.monitor((EVERY,)).observe(windows[0])

    assert windows[0].catalog.contexts[int(examples.context[0])].rank == 2


def test_gradients_that_differ_are_told():
    [explanation] = failures(EVERY, steps_of([[[1], [2]]], names=("a",), norms=[[1.0, 2.0]]))

    assert explanation.message.endswith("after SGD.step: ranks 0, 1 disagree")
    assert "their gradients differed already" in explanation.cause.text


def test_halves_disagree():
    [explanation] = failures(EVERY, steps_of([[[1], [1], [2], [2]]], names=("a",)))

    assert explanation.message.endswith(": ranks 0, 1 disagree with ranks 2, 3")


def test_a_type_is_proposed_whole_where_nothing_of_it_differed():
    equal = steps_of([[[1, 1], [1, 1]], [[2, 2], [2, 2]]], placement=Placement.REPLICATED)

    assert proposed(equal) == {EVERY, where(REPLICATED), where(EQUAL_BEFORE)}


def test_else_what_did_not_differ_is_proposed_by_name():
    partly = steps_of([[[1, 1], [1, 5]], [[2, 2], [2, 6]]])
    name = VarNameParam(var_name="a", var_type=EVERY.var_type, attr_name="data")

    assert proposed(partly) == {name, where(EQUAL_BEFORE)}
    equal = steps_of([[[1, 1], [1, 1]], [[2, 2], [2, 2]]])
    assert proposed(equal, partly) == {name, where(EQUAL_BEFORE)}


def test_what_never_changed_is_no_evidence():
    assert proposed(steps_of([[[1, 1], [1, 1]], [[1, 1], [1, 1]]])) == {where(EQUAL_BEFORE)}


@pytest.mark.parametrize(
    "params",
    [
        (),
        (EVERY, EVERY),
        (VarTypeParam(var_type=EVERY.var_type, attr_name="grad"),),
        (where(("held", True)),),
    ],
)
def test_other_parameters_are_refused(params):
    with pytest.raises(InvariantError, match="RankConsistencyRelation expects one VarTypeParam"):
        RELATION.monitor(params)


def parts_of(values):
    """Return the windows of steps of ranks 0 and 1 with one half of a model, 2 and 3 the other."""
    runs = [RunBuilder(rank=rank, world_size=4) for rank in range(4)]
    merger = StepMerger(range(4))
    windows = []
    for step, ranks in enumerate(values):
        for rank, value in enumerate(ranks):
            run = runs[rank]
            place = {"data_parallel": rank % 2, "tensor_parallel": rank // 2}
            run.at(stage="training", step=step, pipeline_parallel=0, **place)
            parameters = run.parameters("a")
            with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
                run.frame("begin", parameters, grad_norm=1.0)
                run.frame("end", parameters, data=[value], placement=Placement.UNKNOWN)
            windows += merger.add(rank, run.window())
    return windows


def test_only_replicas_are_compared_with_one_another():
    healthy = parts_of([[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]])
    drifting = parts_of([[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 7]])

    assert labels(EVERY, healthy) == [True] * 3
    assert labels(where(EQUAL_BEFORE), drifting) == [False]
    [explanation] = failures(EVERY, drifting)
    assert "ranks 2, 3 disagree" in explanation.message
