"""Gradients that end at layers from which they went on, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Param
from traincheck_plugin.relations.layer_inputs import LayerInputsRelation
from traincheck_plugin.relations.losses import BACKWARD, FIRST, MIN_BACKWARDS
from traincheck_plugin.vocabulary import ENTRY, Item

RELATION = LayerInputsRelation()
NAMES = ("first.weight", "second.weight", "third.weight")


def _rule(*names: str, after: str = "Net") -> tuple[Param, ...]:
    return BACKWARD, ConstantParam(value=(after, *names))


def _backward(run: RunBuilder, layers: str) -> None:
    run.parameters("weight", owner="__main__.Net#0")
    run.call("__main__.Net.forward", object="__main__.Net#0")
    items = [Item(path="formula", type="str", value="mse_loss(layer)")]
    items += [Item(path="layers", type="str", value=layers)] * bool(layers)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(several: Sequence[str]) -> list[Window]:
    events = [lambda run, one=one: _backward(run, one) for one in several]
    return told(events, range(1, len(several)))


def _held(params: tuple[Param, ...], several: Sequence[str]) -> list[bool]:
    return [held for _, held in labels(RELATION, params, _windows(several))]


LAYERS = st.lists(
    st.sampled_from([*NAMES, *(ENTRY + name for name in NAMES)]), max_size=4, unique=True
).map(lambda several: " ".join(sorted(several)))


@given(st.lists(LAYERS, max_size=10))
def test_what_has_no_gradient_any_longer_is_told_when_it_stays(several: list[str]) -> None:
    expected, num_failed = [], 0
    for one in several:
        layers = set(one.split())
        named = {name for name in NAMES[:2] if name in layers or ENTRY + name in layers}
        if named:
            is_cut = any(ENTRY + name in layers for name in named)
            num_failed = num_failed + 1 if is_cut else 0
            if num_failed != 1:
                expected.append(not is_cut)
    assert _held(_rule(*NAMES[:2]), several) == expected


PASSED = f"{ENTRY}first.weight second.weight third.weight"
CUT = f"{ENTRY}first.weight {ENTRY}second.weight third.weight"


def test_later_losses_and_others_are_not_judged() -> None:
    assert _held(_rule("second.weight"), [PASSED] * FIRST + [CUT] * 3) == [True] * FIRST
    assert _held(_rule("second.weight", after="Other"), [CUT] * 3) == []


def _proposed(several: Sequence[str]) -> list[object]:
    proposer = RELATION.proposer()
    for window in _windows(several):
        proposer.observe(window)
    return [hypothesis.params[1].value for hypothesis in proposer.hypotheses()]


def test_what_gradients_always_went_on_from_is_proposed() -> None:
    both = ("Net", "second.weight", "third.weight")
    assert _proposed([PASSED] * MIN_BACKWARDS) == [both]
    assert _proposed([PASSED] * (MIN_BACKWARDS - 1)) == []
    assert _proposed([PASSED] * MIN_BACKWARDS + [CUT]) == [("Net", "third.weight")]
    assert _proposed([f"{ENTRY}first.weight"] * MIN_BACKWARDS) == []


@given(st.lists(LAYERS, min_size=MIN_BACKWARDS, max_size=MIN_BACKWARDS + 4))
def test_what_is_proposed_holds_of_the_reference(several: list[str]) -> None:
    for value in _proposed(several):
        assert all(_held((BACKWARD, ConstantParam(value=value)), several))


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(_rule("second.weight"))
    *_, examples = [monitor.observe(window) for window in _windows([CUT] * 2)]
    explanation = examples.explain(0)
    assert explanation.message == (
        "no gradient of the loss of Net goes on to what `second.weight` is given; in the reference "
        "one does"
    )
    assert explanation.cause is not None
    assert "detached" in explanation.cause.text
    assert RELATION.describe(_rule("second.weight")) == (
        "gradients of the loss of Net go on to the inputs of `second.weight`"
    )
    assert RELATION.severity(_rule("second.weight")) == "warning"
    assert RELATION.needs(_rule("second.weight")).functions == frozenset()


@pytest.mark.parametrize(
    "params",
    [
        (),
        (BACKWARD,),
        (BACKWARD, ConstantParam(value=("Net",))),
        (BACKWARD, ConstantParam(value=3)),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the backward as APIParam"):
        RELATION.monitor(params)
