"""Comparing ranks without processes: threads that reduce among themselves take their place."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tests.builders import RunBuilder
from traincheck_plugin.checker.ranks import MomentReader, StepBuilder
from traincheck_plugin.invariants.model import VAR_TYPES, VarTypeParam
from traincheck_plugin.recorder.sampling import Sampling, first_compared, is_compared, next_compared
from traincheck_plugin.relations.rank_consistency import RankConsistencyRelation
from traincheck_plugin.session.comparison import Comparer

EVERY = VarTypeParam(var_type=VAR_TYPES["parameter"], attr_name="data", quantifier="every")


class Threads:
    """The peers of one thread among several."""

    def __init__(self, rank, size, barrier, shared):
        self.rank, self.size = rank, size
        self.ranks = list(range(size))
        self.barrier, self.shared = barrier, shared
        self.num_gathered = 0

    def gathered(self, values):
        self.num_gathered += 1
        return self.exchanged(values)

    def exchanged(self, values):
        self.shared[self.rank] = values.view(np.int64).copy()
        self.barrier.wait(10)
        found = list(self.shared)
        self.barrier.wait(10)
        return found

    def spread(self, values):
        found = self.exchanged(values)
        assert len({len(one) for one in found}) == 1
        return np.minimum.reduce(found), np.maximum.reduce(found)


def compared(values, *, names=None):
    """Return, for each rank, labels and messages of the steps; ``values[step][rank]``."""
    size = len(values[0])
    barrier, shared = threading.Barrier(size), [None] * size
    results = [None] * size
    peers = [Threads(rank, size, barrier, shared) for rank in range(size)]

    def work(rank):
        builder = StepBuilder()
        reader = MomentReader(builder.catalog)
        comparer = Comparer(peers[rank], builder)
        monitor = RankConsistencyRelation().monitor((EVERY,))
        run = RunBuilder(rank=rank, world_size=size)
        found = []
        for step, ranks in enumerate(values):
            moment = None
            if ranks[rank] is not None:
                run.at(stage="training", step=step)
                parameters = run.parameters(*(names[rank] if names else "ab"))
                with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
                    run.frame("begin", parameters, grad_norm=1.0)
                    run.frame("end", parameters, data=ranks[rank], placement=0)
                moment = reader.read(run.window())
            window = comparer.compare(step, moment)
            if window is None:
                found.append(None)
                continue
            examples = monitor.observe(window)
            held = bool(examples.holds.all())
            found.append(True if held else examples.explain(0).message)
        results[rank] = found

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(one == results[0] for one in results), results
    return results[0], peers


def test_every_rank_learns_who_differs_and_in_what():
    values = [[[1, 2]] * 4, [[3, 4], [3, 4], [3, 9], [3, 4]], [[5, 6], [5, 6], [7, 8], [5, 6]]]

    found, _ = compared(values)

    what = "parameters differ between ranks after SGD.step: rank 2 differs from ranks 0, 1, 3"
    assert found == [True, f"1 of 2 {what}", f"2 of 2 {what}"]


def test_ranks_are_told_apart_only_when_something_begins_to_differ():
    _, peers = compared([[[1, 2]] * 3, [[1, 2], [1, 3], [1, 2]], [[1, 2], [1, 3], [1, 2]]])

    assert [one.num_gathered for one in peers] == [1, 1, 1]


def test_a_step_that_a_rank_did_not_observe_is_left_out_by_all():
    found, _ = compared([[[1, 2]] * 3, [[3, 4], None, [3, 4]], [[5, 6]] * 3])

    assert found == [True, None, True]


def test_what_only_some_ranks_have_is_not_compared():
    values = [[[1, 2, 3], [1, 2]], [[4, 5, 6], [4, 7]]]

    found, _ = compared(values, names=["abx", "ab"])

    assert found[0] is True
    assert found[1].startswith("1 of 2 parameters differ between ranks")


def test_ranks_that_have_nothing_in_common_are_not_compared():
    found, _ = compared([[[1], [2]]], names=["x", "y"])

    assert found == [None]


@pytest.mark.parametrize(
    ("sampling", "steps"),
    [
        (Sampling(interval=1), [0, 1, 2, 3, 4]),
        (Sampling(interval=50), [0, 50, 100, 150, 200]),
        (Sampling(interval=None, warm_up_steps=3), [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 384]),
    ],
)
def test_which_steps_are_compared_follows_from_their_number(sampling, steps):
    found = [first_compared(0, sampling)]
    while len(found) < len(steps):
        found.append(next_compared(found[-1], sampling))

    assert found == steps
    assert all(is_compared(step, sampling) for step in steps)
