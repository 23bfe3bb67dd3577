"""How what has no gradients is computed, against a naive reference."""

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
from traincheck_plugin.relations.derivations import DerivationsRelation
from traincheck_plugin.relations.losses import BACKWARD, FIRST, MIN_BACKWARDS
from traincheck_plugin.vocabulary import NO_DERIVATION, WITHIN, Item

RELATION = DerivationsRelation()
FORMULA = "mse_loss(layer,constant)"


def _rule(*named: str, after: str = "Net", formula: str = FORMULA) -> tuple[Param, ...]:
    return BACKWARD, ConstantParam(value=(after, formula, *named))


def _backward(run: RunBuilder, derivations: str, formula: str = FORMULA) -> None:
    run.parameters("weight", owner="__main__.Net#0")
    run.call("__main__.Net.forward", object="__main__.Net#0")
    items = [Item(path="formula", type="str", value=formula)]
    items += [Item(path="derivations", type="str", value=derivations)] * bool(derivations)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(several: Sequence[str]) -> list[Window]:
    events = [lambda run, one=one: _backward(run, one) for one in several]
    return told(events, range(1, len(several)))


def _held(params: tuple[Param, ...], several: Sequence[str]) -> list[bool]:
    return [held for _, held in labels(RELATION, params, _windows(several))]


TARGET, UNMASKED = "mse_loss<add,mul,mul,rsub", "mse_loss<add,mul"
INPUT = "linear<div,sub"
BOTH = f"{INPUT} {TARGET}"
NAMES = (TARGET, UNMASKED, INPUT, "linear<sub")
DERIVATIONS = st.one_of(
    st.sampled_from(["", NO_DERIVATION]),
    st.sets(st.sampled_from(NAMES), min_size=1).map(lambda several: " ".join(sorted(several))),
)


@given(st.lists(DERIVATIONS, max_size=10))
def test_what_was_never_computed_so_is_told_when_it_stays(several: list[str]) -> None:
    expected, seen, num_failed = [], set(), 0
    for one in filter(None, several):
        seen |= set(one.split())
        is_missing = not {TARGET, INPUT} <= seen
        num_failed = num_failed + 1 if is_missing else 0
        if num_failed != 1:
            expected.append(not is_missing)
    assert _held(_rule(INPUT, TARGET), several) == expected


def test_later_losses_and_others_are_not_judged() -> None:
    assert len(_held(_rule(TARGET), [TARGET] * (FIRST + 3))) == FIRST
    assert _held(_rule(TARGET, after="Other"), [UNMASKED] * 3) == []
    assert _held(_rule(TARGET, formula="l1_loss(layer,constant)"), [UNMASKED] * 3) == []


@pytest.mark.parametrize("is_within", [True, False])
def test_what_is_computed_within_a_forward_is_another_thing(is_within: bool) -> None:
    named = [WITHIN] * is_within + [TARGET]
    assert _held(_rule(*named), [UNMASKED] * 3) == [False] * 2 * (not is_within)
    assert _held(_rule(*named), [f"{WITHIN} {UNMASKED}"] * 3) == [False] * 2 * is_within
    assert _held(_rule(*named), [f"{WITHIN} {TARGET}"] * 3) == [True] * 3 * is_within


def _proposed(several: Sequence[str]) -> list[tuple[str, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(several):
        proposer.observe(window)
    return [hypothesis.params[1].value for hypothesis in proposer.hypotheses()]


def test_what_is_always_computed_so_is_proposed() -> None:
    assert _proposed([BOTH] * MIN_BACKWARDS) == [("Net", FORMULA, INPUT, TARGET)]
    assert _proposed([BOTH] * (MIN_BACKWARDS - 1)) == []
    assert _proposed([BOTH] * MIN_BACKWARDS + [INPUT]) == [("Net", FORMULA, INPUT)]
    assert _proposed([BOTH] * MIN_BACKWARDS + [NO_DERIVATION]) == []
    within = f"{WITHIN} {TARGET}"
    assert _proposed([within] * MIN_BACKWARDS) == [("Net", FORMULA, TARGET, WITHIN)]
    assert _proposed([WITHIN] * MIN_BACKWARDS) == []
    assert _proposed([BOTH] * MIN_BACKWARDS + [""]) == [("Net", FORMULA, INPUT, TARGET)]


@given(st.lists(DERIVATIONS, min_size=MIN_BACKWARDS, max_size=MIN_BACKWARDS + 4))
def test_what_is_proposed_holds_of_the_reference(several: list[str]) -> None:
    for value in _proposed(several):
        assert all(_held((BACKWARD, ConstantParam(value=value)), several))


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (UNMASKED, "without mul, rsub"),
        ("mse_loss<add,mean,mul,mul", "with mean and without rsub"),
        ("mse_loss<add,mul,mul,rsub,std mse_loss<exp", "with std"),
        (INPUT, "not at all"),
        (NO_DERIVATION, "not at all"),
    ],
)
def test_the_difference_is_told(now: str, difference: str) -> None:
    monitor = RELATION.monitor(_rule(TARGET))
    *_, examples = [monitor.observe(window) for window in _windows([now] * 2)]
    explanation = examples.explain(0)
    assert explanation.message == (
        "what mse_loss is given without gradients in the loss of Net is computed otherwise than in "
        f"the reference: {difference}"
    )
    assert explanation.cause is not None
    assert "a target, a mask or an input" in explanation.cause.text


def test_a_rule_is_a_sentence() -> None:
    rule = _rule(INPUT, TARGET)
    assert RELATION.describe(rule) == (
        "what has no gradients in the loss of Net is computed as it was: linear by div, sub; "
        "mse_loss by add, mul, mul, rsub"
    )
    assert RELATION.severity(rule) == "warning"
    assert RELATION.needs(rule).attributes == {}


@pytest.mark.parametrize(
    "params",
    [
        (),
        (BACKWARD,),
        (BACKWARD, ConstantParam(value=("Net", FORMULA))),
        (BACKWARD, ConstantParam(value=("Net", FORMULA, "mse_loss"))),
        (BACKWARD, ConstantParam(value=("Net", FORMULA, WITHIN))),
        (BACKWARD, ConstantParam(value=3)),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the backward as APIParam"):
        RELATION.monitor(params)
