"""Modules whose gradients are all zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import ConstantParam
from traincheck_plugin.relations.gradient_flow import (
    FLOWING,
    IN_A_ROW,
    MIN_STEPS,
    NEVER,
    GradientFlowRelation,
)
from traincheck_plugin.vocabulary import GradState

RELATION = GradientFlowRelation()
FIRST, SECOND = "torch.optim.SGD#0", "torch.optim.SGD#1"
NAMES = ("stem.weight", "branch.0.weight", "branch.0.bias")
PARAMS = (FLOWING, ConstantParam(value=("Net#0.branch.0.weight",)))

NULL, ZERO, FLOWS = GradState.NULL, GradState.ZERO, GradState.NON_ZERO
HEALTHY, DRY, FLAT = (FLOWS, FLOWS, ZERO), (FLOWS, ZERO, ZERO), (ZERO, ZERO, ZERO)


def _step(
    grads: Sequence[GradState],
    target: str = FIRST,
    *,
    led: bool = True,
    held: str = FIRST,
    shape: tuple[int, ...] = (4, 4),
) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        if led:
            run.call("torch.Tensor.backward")
        with run.calling("torch.optim.SGD.step", object=target):
            codes = run.parameters(*NAMES, shape=shape)
            run.frame("begin", codes, grad=list(grads), optimizer=held)

    return tell


def _held(*run: Callable[[RunBuilder], object]) -> list[bool]:
    windows = told(run, range(1, len(run)))
    return [holds for _, holds in labels(RELATION, PARAMS, windows)]


def _began(*run: Callable[[RunBuilder], object]) -> list[bool]:
    windows = told(run, range(1, len(run)))
    return [holds for _, holds in labels(RELATION, (FLOWING,), windows)]


def test_an_optimizer_that_never_gets_anything_but_zeros() -> None:
    assert _began(*[_step(FLAT)] * (NEVER + 1)) == [True] * (NEVER - 1) + [False] * 2
    (window,) = told([_step((ZERO, NULL, NULL))] * NEVER, [])
    explanation = RELATION.monitor((FLOWING,)).observe(window).explain(NEVER - 1)
    assert explanation.message == (
        "the gradient of `stem.weight` was all zeros in each of the first 10 calls of SGD.step"
    )
    assert "some gradient that an optimizer uses" in RELATION.describe((FLOWING,))


def test_what_got_gradients_once_may_rest() -> None:
    # A margin is reached, or another optimizer has its turn.
    assert _began(_step(DRY), *[_step(FLAT)] * 2 * NEVER) == [True]
    both = [_step(FLAT), _step(HEALTHY, SECOND, held=SECOND)]
    assert _began(*both * NEVER) == [True] * NEVER + [False]
    assert _began(*[_step(FLAT, led=False)] * 2 * NEVER) == []
    assert all(_began(*[_step((ZERO, NULL, NULL), shape=(1,))] * 2 * NEVER))


@given(
    st.lists(st.sampled_from([FLAT, FLAT, FLAT, (NULL, NULL, NULL), DRY]), max_size=40),
    st.sets(st.integers(1, 39)),
)
def test_the_beginning_is_judged_as_the_formula_says(
    run: list[tuple[GradState, ...]], cuts: set[int]
) -> None:
    expected, number = [], 0
    has_flowed = False
    for grads in run:
        if has_flowed:
            break
        has_flowed = grads == DRY
        number += grads == FLAT
        expected.append(has_flowed or number < NEVER)
    found = labels(RELATION, (FLOWING,), told([_step(grads) for grads in run], sorted(cuts)))
    assert [holds for _, holds in found] == expected


def test_a_module_that_gets_nothing_but_zeros() -> None:
    run = [_step(HEALTHY), *[_step(DRY)] * (IN_A_ROW + 1), _step(HEALTHY)]
    assert _held(*run) == [True] * IN_A_ROW + [False] * 2 + [True]


@pytest.mark.parametrize(
    "between",
    [
        _step(HEALTHY),
        # The loss is flat, or the module did not run.
        _step(FLAT),
        _step((FLOWS, NULL, NULL)),
    ],
)
def test_steps_that_begin_anew(between: Callable[[RunBuilder], object]) -> None:
    run = [*[_step(DRY)] * (IN_A_ROW - 1), between]
    assert all(_held(*run * 3))


def test_what_does_not_count() -> None:
    others = [_step(DRY, led=False), _step(HEALTHY, SECOND)]
    found = _held(*[step for _ in range(IN_A_ROW) for step in (_step(DRY), *others)])
    assert found == [True] * (IN_A_ROW - 1) + [False]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([HEALTHY, DRY, FLAT, (FLOWS, NULL, NULL)]),
            st.sampled_from([FIRST, SECOND]),
        ),
        max_size=30,
    ),
    st.sets(st.integers(1, 29)),
)
def test_steps_are_judged_as_the_formula_says(
    run: list[tuple[tuple[GradState, ...], str]], cuts: set[int]
) -> None:
    expected, num_dry = [], {FIRST: 0, SECOND: 0}
    for grads, target in run:
        num_dry[target] = num_dry[target] + 1 if grads == DRY else 0
        if grads in (HEALTHY, DRY):
            expected.append(num_dry[target] < IN_A_ROW)
    events = [_step(grads, target, held=target) for grads, target in run]
    found = labels(RELATION, PARAMS, told(events, sorted(cuts)))
    assert [holds for _, holds in found] == expected


def test_the_cause_is_told() -> None:
    (window,) = told([_step(DRY)] * IN_A_ROW, [])
    explanation = RELATION.monitor(PARAMS).observe(window).explain(IN_A_ROW - 1)
    assert explanation.message == (
        "the gradient of `branch.0.weight` was all zeros in the last 5 calls of SGD.step"
    )
    assert explanation.cause is not None
    assert "`branch.0.weight` computes" in explanation.cause.text


def test_named_is_what_gets_gradients_all_the_time() -> None:
    proposer = RELATION.proposer()
    for window in told([_step(HEALTHY), _step(DRY)] * MIN_STEPS, [3]):
        proposer.observe(window)
    law, hypothesis = proposer.hypotheses()
    assert law.params == (FLOWING,)
    assert hypothesis.params == (
        FLOWING,
        ConstantParam(value=("Net#0.branch.0.weight", "Net#0.stem.weight")),
    )
    # Another run begins anew.
    for _ in range(2):
        for window in told([_step(DRY), _step(HEALTHY), _step(DRY)], [2]):
            proposer.observe(window)
    _, hypothesis = proposer.hypotheses()
    assert "Net#0.branch.0.weight" in hypothesis.params[1].value
    for window in told([_step(DRY)] * 2, []):
        proposer.observe(window)
    _, hypothesis = proposer.hypotheses()
    assert hypothesis.params == (FLOWING, ConstantParam(value=("Net#0.stem.weight",)))


def test_the_names_are_a_list() -> None:
    with pytest.raises(InvariantError, match="a list of names, got 3"):
        RELATION.monitor((FLOWING, ConstantParam(value=3)))
