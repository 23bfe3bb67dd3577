"""Ranks put side by side: aligned on steps, in any interleaving, whatever they called."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.builders import RunBuilder
from traincheck_plugin.checker.ranks import MAX_WAITING, StepMerger


def rank_run(rank, num_steps, *, names=("w",), extra_calls=0, offset=0):
    """Return the windows of a rank whose variables have the number of the step as data."""
    run = RunBuilder(rank=rank, world_size=2)
    if offset:
        run.parameters(*(f"other_{i}" for i in range(offset)))  # other codes for the same names
    parameters = run.parameters(*names)
    windows = []
    for step in range(num_steps):
        run.at(stage="training", step=step)
        for _ in range(extra_calls):
            run.call("torch.nn.functional.relu")
        with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
            run.frame("begin", parameters, grad_norm=1.0, data=step)
            run.frame("end", parameters, data=step + 1, placement=0)
        windows.append(run.window())
    return windows


def merged(runs, order):
    merger = StepMerger(runs)
    left = {rank: list(windows) for rank, windows in runs.items()}
    steps = []
    for rank in order:
        steps += merger.add(rank, left[rank].pop(0))
        if not left[rank]:
            steps += merger.finish(rank)
    return steps


def shown(steps):
    """Return, for each step, its number and what each rank has after it."""
    result = []
    for window in steps:
        contexts = window.catalog.contexts
        ends = [frame for frame in window.frames if frame.phase == "end"]
        ranks = {
            contexts[frame.context].rank: {
                window.catalog.variables[int(code)].name: int(value)
                for code, value in zip(frame.variables, frame.columns["data"], strict=True)
            }
            for frame in ends
        }
        result.append((contexts[ends[0].context].step, ranks))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_any_interleaving_gives_the_same_steps(seed):
    runs = {
        0: rank_run(0, 6),
        1: rank_run(1, 6, extra_calls=3, offset=2),
        2: rank_run(2, 6, names=("w", "v")),
    }
    order = [rank for rank, windows in runs.items() for _ in windows]
    random.Random(seed).shuffle(order)  # noqa: S311

    steps = shown(merged(runs, order))

    assert steps == [
        (step, {0: {"w": step + 1}, 1: {"w": step + 1}, 2: {"w": step + 1, "v": step + 1}})
        for step in range(6)
    ]


def test_a_rank_with_more_steps_is_alone_with_them():
    steps = merged({0: rank_run(0, 5), 1: rank_run(1, 3)}, [0] * 5 + [1] * 3)

    assert [step for step, _ in shown(steps)] == [0, 1, 2]


def test_a_step_that_a_rank_did_not_observe_is_shown_without_it():
    runs = {rank: rank_run(rank, 3) for rank in range(3)}
    del runs[1][1]

    steps = merged(runs, [0, 0, 0, 1, 1, 2, 2, 2])

    assert [(step, sorted(ranks)) for step, ranks in shown(steps)] == [
        (0, [0, 1, 2]),
        (1, [0, 2]),
        (2, [0, 1, 2]),
    ]


def test_a_rank_that_stays_behind_does_not_hold_up_the_others():
    num_steps = MAX_WAITING + 10
    merger = StepMerger(range(3))
    steps = []
    for zero, one in zip(rank_run(0, num_steps), rank_run(1, num_steps), strict=True):
        steps += merger.add(0, zero)
        steps += merger.add(1, one)

    assert [step for step, _ in shown(steps)] == list(range(10))
    assert merger.add(2, rank_run(2, 1)[0]) == []


def test_gradients_are_those_before_the_step():
    [window] = merged({0: rank_run(0, 1), 1: rank_run(1, 1)}, [0, 1])

    begins = [frame for frame in window.frames if frame.phase == "begin"]
    assert [list(frame.columns) for frame in begins] == [["grad_norm"]] * 2


def test_what_another_optimizer_updates_later_in_the_step_counts():
    runs = {}
    for rank in range(2):
        run = RunBuilder(rank=rank, world_size=2)
        run.at(stage="training")
        slots = {
            name: run.parameters(f"{name}.m", kind="slot", owner=f"torch.optim.{name}#0")
            for name in ("A", "B")
        }
        parameters = run.parameters("w")
        for number, name in enumerate(("A", "B")):
            with run.calling(f"torch.optim.{name}.step", object=f"torch.optim.{name}#0"):
                run.frame("end", parameters, data=number)
                run.frame("end", slots[name], data=number + 10)
        runs[rank] = [run.window()]

    [(_, ranks)] = shown(merged(runs, [0, 1]))

    [window] = merged(runs, [0, 1])
    values = {
        window.catalog.variables[int(code)].name: int(value)
        for frame in window.frames
        for code, value in zip(frame.variables, frame.columns["data"], strict=True)
    }
    assert values == {"w": 1, "A.m": 10, "B.m": 11}
    assert set(ranks) == {0, 1}


def test_what_waits_is_small():
    merger = StepMerger([0, 1])
    for window in rank_run(0, 20, extra_calls=100):
        merger.add(0, window)

    moments = [moment for ranks in merger._waiting.values() for moment in ranks.values()]
    assert len(moments) == 20
    arrays = [
        array
        for moment in moments
        for state in moment.states
        for array in (state.variables, *state.columns.values())
    ]
    assert sum(np.asarray(array).nbytes for array in arrays) < 20 * 100
