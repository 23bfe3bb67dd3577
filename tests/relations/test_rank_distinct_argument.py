"""Ranks that share the data and all see the same of it are found; what may be the same is not."""

from __future__ import annotations

import pytest

from tests.builders import RunBuilder, tensor
from traincheck_plugin.checker.ranks import StepMerger
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import VAR_TYPES, VarNameParam, VarTypeParam
from traincheck_plugin.relations.rank_distinct_argument import (
    INPUTS,
    REPLICAS,
    RankDistinctArgumentRelation,
)

RELATION = RankDistinctArgumentRelation()
CPU = VarNameParam(var_name="cpu", var_type=VAR_TYPES["generator"], attr_name="data")


def rank_run(rank, world_size, values, *, place=None, num_elements=64, state=0):
    """Return the windows of a rank whose models are given inputs with these hashes."""
    run = RunBuilder(rank=rank, world_size=world_size)
    names = ("data_parallel", "tensor_parallel", "pipeline_parallel")
    run.at(stage="training", **dict(zip(names, place or (-1, -1, -1), strict=True)))
    inputs = run.parameters("0", kind="input", owner="net.Net#0")
    generators = run.parameters("cpu", kind="generator", owner="torch")
    windows = []
    for step, value in enumerate(values):
        run.at(step=step)
        with run.calling("net.Net.forward", object="net.Net#0", inputs=[tensor()]):
            run.frame("begin", generators, data=[step + 100 * state])
            run.frame("end", inputs, data=[value], value=[num_elements])
        with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
            pass
        windows.append(run.window())
    return windows


def judged(runs, param=REPLICAS):
    """Return whether each step holds, of those that are examples."""
    merger = StepMerger(range(len(runs)))
    monitor = RELATION.monitor((param,))
    steps = [
        step for rank, windows in enumerate(runs) for w in windows for step in merger.add(rank, w)
    ]
    steps += [step for rank in range(len(runs)) for step in merger.finish(rank)]
    result = []
    for step in steps:
        examples = monitor.observe(step)
        result += examples.holds.tolist()
        for row in range(len(examples)):
            assert examples.holds[row] or "ranks" in examples.explain(row).message
    return result


def runs_of(*values, places=None, **options):
    return [
        rank_run(rank, len(values), one, place=places and places[rank], **options)
        for rank, one in enumerate(values)
    ]


REPLICATED = [(0, 0, 0), (1, 0, 0)]


def test_the_same_data_on_each_rank():
    assert judged(runs_of([1, 2, 3], [1, 2, 3], places=REPLICATED)) == [False, False]
    assert judged(runs_of([1, 2, 3], [4, 5, 6], places=REPLICATED)) == [True, True]


def test_what_never_changes_may_be_the_same():
    assert judged(runs_of([1, 1, 1], [1, 1, 1], places=REPLICATED)) == []


def test_few_elements_are_not_compared():
    assert judged(runs_of([1, 2], [1, 2], places=REPLICATED, num_elements=8)) == []


def test_ranks_that_nothing_relates_are_a_matter_of_the_pipeline():
    runs = runs_of([1, 2, 3], [1, 2, 3])
    assert judged(runs) == []
    assert judged(runs, INPUTS) == [False, False]


def test_tensor_parallel_ranks_are_meant_to_see_the_same():
    places = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0)]
    healthy = runs_of([1, 2], [1, 2], [3, 4], [3, 4], places=places)
    same = runs_of([1, 2], [1, 2], [1, 2], [1, 2], places=places)

    assert judged(healthy) == [True]
    assert judged(same) == [False]


def test_some_ranks_that_agree_are_not_all():
    places = [(rank, 0, 0) for rank in range(3)]
    assert judged(runs_of([1, 2], [1, 2], [3, 4], places=places)) == [True]


def test_random_states():
    assert judged(runs_of([1, 2], [3, 4]), CPU) == [False]
    differing = [rank_run(rank, 2, [1, 2], state=rank) for rank in range(2)]
    assert judged(differing, CPU) == [True]


def test_proposed_is_what_is_seen():
    merger = StepMerger(range(2))
    proposer = RELATION.proposer()
    for rank, windows in enumerate(runs_of([1, 2], [3, 4], places=REPLICATED)):
        for window in windows:
            for step in merger.add(rank, window):
                proposer.observe(step)

    assert {h.params[0] for h in proposer.hypotheses()} == {REPLICAS, INPUTS, CPU}


def test_other_parameters_are_refused():
    for params in ((), (VarTypeParam(var_type=VAR_TYPES["input"], attr_name="data"),)):
        with pytest.raises(InvariantError, match="expects one VarTypeParam"):
            RELATION.monitor(params)
