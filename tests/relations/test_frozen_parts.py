"""What an optimizer of the reference leaves alone, against a naive reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Param
from traincheck_plugin.relations.frozen_parts import (
    LEFT_ALONE,
    MAX_OPTIMIZERS,
    MIN_STEPS,
    FrozenPartsRelation,
)
from traincheck_plugin.vocabulary import Item

RELATION = FrozenPartsRelation()
NAMES = ("stem.0.weight", "stem.0.bias", "stem.2.weight", "head.weight", "head.bias")
FIRST, SECOND = "torch.optim.Adam#0", "torch.optim.Adam#1"


def _params(*parts: str, optimizer: str = "Adam#0", length: int = MIN_STEPS) -> tuple[Param, ...]:
    return LEFT_ALONE, ConstantParam(value=(optimizer, length, *parts))


STEM = _params("Net.stem")


def _step(
    trained: Sequence[int], target: str = FIRST, frozen: Sequence[int] = ()
) -> Callable[[RunBuilder], object]:
    """Tell a step of an optimizer that holds those *trained* and *frozen*."""

    def tell(run: RunBuilder) -> None:
        with run.calling("torch.optim.Adam.step", object=target):
            run.frame(
                "begin",
                run.parameters(*NAMES),
                optimizer=[target if n in (*trained, *frozen) else "" for n in range(len(NAMES))],
                requires_grad=[n in trained for n in range(len(NAMES))],
            )
        run.at(step=run.context.step + 1)

    return tell


def _load(target: str = FIRST, outcome: str = "all") -> Callable[[RunBuilder], object]:
    name = "torch.optim.Adam.load_state_dict"
    outputs = [Item(path="loaded", type="str", value=outcome)]
    return lambda run: run.call(name, object=target, outputs=outputs)


HEAD, ALL, FROZEN = _step([3, 4]), _step(range(5)), _step([3, 4], frozen=[0, 1, 2])


def _windows(events: Sequence[Callable[[RunBuilder], object]]) -> list[Window]:
    return told(events, range(1, len(events)))


def _held(params: tuple[Param, ...], *events: Callable[[RunBuilder], object]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, params, _windows(events))]


@given(
    st.lists(
        st.tuples(
            st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)), st.sampled_from([FIRST, SECOND])
        ),
        max_size=12,
    )
)
def test_steps_are_judged_as_the_formula_says(
    steps: list[tuple[set[int], set[int], str]],
) -> None:
    events = [_step(sorted(trained), target, sorted(held)) for trained, held, target in steps]
    first = next((n for n, (_, _, target) in enumerate(steps) if target == FIRST), 0)
    expected = [
        not trained & {0, 1, 2}
        for n, (trained, _, target) in enumerate(steps)
        if target == FIRST and n - first < MIN_STEPS
    ]
    assert _held(STEM, *events) == expected


def test_later_steps_are_not_judged() -> None:
    assert _held(STEM, *[HEAD] * MIN_STEPS, ALL) == [True] * MIN_STEPS


def test_what_goes_on_from_a_loaded_state_is_not_judged() -> None:
    assert _held(STEM, _load(), ALL) == []
    assert _held(STEM, _load(SECOND), ALL) == [False]
    # Accelerate loads the state that a new optimizer does not have.
    assert _held(STEM, _load(outcome="none"), ALL) == [False]


def test_what_is_trained_is_named() -> None:
    [window] = told([_step([0, 3])], [])
    explanation = RELATION.monitor(STEM).observe(window).explain(0)
    assert explanation.message == "Adam.step trains `stem.0.weight`; in the reference it does not"
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("stem.0.weight",)
    assert "has requires_grad=True and is held by the optimizer" in explanation.cause.text


def _proposed(*events: Callable[[RunBuilder], object]) -> set[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(events):
        proposer.observe(window)
    return {hypothesis.params for hypothesis in proposer.hypotheses()}


def test_the_largest_parts_are_proposed() -> None:
    assert _proposed(*[HEAD] * MIN_STEPS) == {STEM}
    assert _proposed(*[FROZEN] * MIN_STEPS) == {STEM}
    assert _proposed(*[HEAD] * (MIN_STEPS - 1)) == set()
    assert _proposed(*[ALL] * MIN_STEPS) == set()
    some = _params("Net.stem.0.weight", "Net.stem.2")
    assert _proposed(*[_step([1, 3, 4])] * MIN_STEPS) == {some}


def test_what_is_unfrozen_later_is_trained() -> None:
    assert _proposed(*[HEAD] * MIN_STEPS, ALL) == set()


def test_each_optimizer_has_its_parts() -> None:
    other = _step([0, 1, 2], SECOND)
    expected = {
        _params("Net.stem", length=2 * MIN_STEPS - 1),
        _params("Net.head", optimizer="Adam#1", length=2 * MIN_STEPS - 1),
    }
    assert _proposed(*[HEAD, other] * MIN_STEPS) == expected


def test_one_optimizer_for_each_of_something_tells_nothing() -> None:
    many = [_step([3], f"torch.optim.Adam#{n}") for n in range(MAX_OPTIMIZERS + 1)]
    assert _proposed(*[step for step in many for _ in range(MIN_STEPS)]) == set()


@pytest.mark.parametrize("value", ["Net.stem", ("Adam#0", "8"), ("Adam#0", 8, 3)])
def test_other_parameters_are_refused(value: object) -> None:
    with pytest.raises(InvariantError, match="needs an optimizer, a number of steps and names"):
        RELATION.monitor((LEFT_ALONE, ConstantParam(value=value)))


def test_the_rule_is_a_sentence() -> None:
    assert RELATION.describe(STEM) == "Adam#0 does not train `Net.stem` in its first 8 steps"
    many = _params("Net.a", "Net.b", "Net.c", "Net.d", "Net.e")
    assert RELATION.describe(many).endswith(
        "`Net.a`, `Net.b`, `Net.c` and 2 other parts in its first 8 steps"
    )
