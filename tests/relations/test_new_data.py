"""Data that training sees again, against a naive reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import LOADER_FACTS, Window
from traincheck_plugin.invariants.model import VAR_TYPES, ConstantParam, Param, VarNameParam
from traincheck_plugin.relations.new_data import MIN_STEPS, NewDataRelation
from traincheck_plugin.relations.passing import MIN_ELEMENTS
from traincheck_plugin.vocabulary import Variable

RELATION = NewDataRelation()
LOADER, MODEL = "torch.utils.data.DataLoader#0", "__main__.Net#0"


def _of(kind: str, name: str, length: int = MIN_STEPS) -> tuple[Param, ...]:
    source = VarNameParam(
        var_name=name,
        var_type=VAR_TYPES[kind],
        attr_name="data",  # type: ignore[index]
    )
    return source, ConstantParam(value=length)


INPUTS, BATCHES = _of("input", "Net"), _of("batch", "DataLoader#0")


def _windows(
    steps: Sequence[Sequence[int]],
    *,
    size: int = MIN_ELEMENTS,
    shuffles: float = 1,
    starts: Sequence[int] = (),
    stage: str = "training",
) -> list[Window]:
    """Return a window for each step, in which the model is given some data after the other."""
    run, windows = RunBuilder(), []
    run.at(stage=stage)
    facts = run.variables(
        *(Variable(kind="loader", name=n, owner=LOADER, type="float") for n in LOADER_FACTS)
    )
    batch = run.variables(Variable(kind="batch", name="0", owner=LOADER, type="torch.Tensor"))
    inputs = run.variables(Variable(kind="input", name="0", owner=MODEL, type="torch.Tensor"))
    for number, several in enumerate(steps):
        run.at(step=number)
        start = starts[number] if starts else 0
        for data in several:
            with run.calling("torch.utils.data.DataLoader.__next__", object=LOADER):
                run.frame("end", batch, data=data, value=size)
                run.frame("end", facts, value=[shuffles, 640, 64, start, number, *[math.nan] * 2])
            with run.calling("__main__.Net.forward", object=MODEL):
                if stage == "training":
                    run.frame("end", inputs, data=data, value=size)
        windows.append(run.window())
    return windows


def _held(params: tuple[Param, ...], windows: Sequence[Window]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, params, windows)]


@given(st.lists(st.lists(st.integers(1, 30), max_size=2), max_size=MIN_STEPS + 3))
def test_steps_are_judged_as_the_formula_says(steps: list[list[int]]) -> None:
    expected, has_failed = [], False
    first = next((number for number, data in enumerate(steps) if data), 0)
    for number, data in enumerate(steps):
        if not data or number - first >= MIN_STEPS:
            continue
        held = not any(one in earlier for one in data for earlier in steps[: max(0, number - 1)])
        if held or has_failed:
            expected.append(held)
        has_failed = not held
    windows = _windows(steps)
    assert _held(INPUTS, windows) == expected
    assert _held(BATCHES, windows) == expected


def test_what_is_not_judged() -> None:
    same = [[7]] * 5
    # What is used in two steps in a row may be meant for two optimizers.
    assert _held(INPUTS, _windows(same)) == [True, True, False, False]
    assert _held(INPUTS, _windows(same, size=MIN_ELEMENTS - 1)) == []
    assert _held(INPUTS, _windows([[0]] * 4)) == []
    assert _held(_of("input", "Critic"), _windows(same)) == []
    # The same input several times in one step is a closure, or a measurement.
    assert _held(INPUTS, _windows([[1, 1], [2, 2]])) == [True, True]
    assert _held(BATCHES, _windows(same, stage="validation")) == []


def _proposed(windows: Sequence[Window]) -> set[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in windows:
        proposer.observe(window)
    return {hypothesis.params for hypothesis in proposer.hypotheses()}


def test_what_was_always_new_is_proposed() -> None:
    new = [[number] for number in range(1, MIN_STEPS + 1)]
    assert _proposed(_windows(new)) == {INPUTS, BATCHES}
    assert _proposed(_windows(new[1:])) == set()
    assert _proposed(_windows([*new, [1]])) == set()


def test_an_order_that_came_once_may_come_again() -> None:
    new = [[number] for number in range(1, MIN_STEPS + 1)]
    once = _windows(new, shuffles=0)
    assert _proposed(once) == {INPUTS}
    twice = _windows(new, shuffles=0, starts=[0] * 5 + [1] * (MIN_STEPS - 5))
    assert _proposed(twice) == {INPUTS, BATCHES}
    assert _proposed(_windows(new, shuffles=math.nan)) == {INPUTS, BATCHES}


def test_each_run_of_a_reference_begins_anew() -> None:
    new = [[number] for number in range(1, MIN_STEPS + 1)]
    assert _proposed([*_windows(new), *_windows(new)]) == {INPUTS, BATCHES}
    monitor = RELATION.monitor(INPUTS)
    for windows in (_windows(new), _windows(new)):
        assert all(monitor.observe(window).holds.all() for window in windows)


def test_the_cause_is_told() -> None:
    windows = _windows([[7]] * 4)
    monitor = RELATION.monitor(BATCHES)
    examples = [monitor.observe(one) for one in windows][-1]
    explanation = examples.explain(0)
    assert explanation.message == "DataLoader#0 delivered the same data as long before"
    assert explanation.cause is not None
    assert "a generator was seeded anew" in explanation.cause.text


@pytest.mark.parametrize(
    "params",
    [
        (INPUTS[0], ConstantParam(value="10")),
        (VarNameParam(var_name="Net", var_type="float", attr_name="data"), INPUTS[1]),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="needs a model or a loader and a number of steps"):
        RELATION.monitor(params)


def test_the_rule_is_a_sentence() -> None:
    assert RELATION.describe(INPUTS) == "Net is given nothing twice in its first 10 steps"
    assert RELATION.describe(BATCHES).startswith("DataLoader#0 delivers nothing twice")
