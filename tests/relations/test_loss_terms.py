"""Terms of a loss that give no gradients, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.loss_terms import LossTermsRelation
from traincheck_plugin.relations.losses import BACKWARD
from traincheck_plugin.vocabulary import NO_CUT, Item

RELATION = LossTermsRelation()
PARAMS = (BACKWARD,)

Told = tuple[str, str]
"""The class of the model before a loss, and what is told of its terms."""


def _backward(run: RunBuilder, after: str, cuts: str) -> None:
    owner = f"__main__.{after}#0"
    run.parameters("weight", owner=owner)
    run.call(f"__main__.{after}.forward", object=owner)
    items = [Item(path="formula", type="str", value="mse_loss(layer)")]
    items += [Item(path="cuts", type="str", value=cuts)] * bool(cuts)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(several: Sequence[Told]) -> list[Window]:
    events = [lambda run, one=one: _backward(run, *one) for one in several]
    return told(events, range(1, len(several)))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Net", "Critic"]), st.sampled_from([NO_CUT, "gt", "gt item", ""])
        )
    )
)
def test_terms_without_gradients_are_told_when_they_stay(several: list[Told]) -> None:
    expected, num_failed = [], {"Net": 0, "Critic": 0}
    for after, cuts in several:
        if cuts:
            num_failed[after] = 0 if cuts == NO_CUT else num_failed[after] + 1
            if num_failed[after] != 1:
                expected.append(cuts == NO_CUT)
    assert [held for _, held in labels(RELATION, PARAMS, _windows(several))] == expected


def _failure(cuts: str) -> Explanation:
    monitor = RELATION.monitor(PARAMS)
    *_, examples = [monitor.observe(window) for window in _windows([("Net", cuts)] * 2)]
    return examples.explain(0)


def test_the_cause_is_told() -> None:
    explanation = _failure("argmax gt")
    assert explanation.message == "a term that is added to the loss of Net gives no gradient"
    assert explanation.cause is not None
    assert explanation.cause.text == (
        "a term of the loss of Net changes its value and teaches nothing: argmax and gt took the "
        "gradients of what it is computed of"
    )
    penalty = _failure("grad").cause
    assert penalty is not None
    assert "create_graph=True" in penalty.text


@pytest.mark.parametrize(("cuts", "found"), [(NO_CUT, [PARAMS]), ("gt", [PARAMS]), ("", [])])
def test_it_is_proposed_where_terms_are_told(cuts: str, found: list) -> None:
    proposer = RELATION.proposer()
    for window in _windows([("Net", cuts)]):
        proposer.observe(window)
    assert [hypothesis.params for hypothesis in proposer.hypotheses()] == found


def test_the_rule_has_words() -> None:
    assert RELATION.describe(PARAMS) == (
        "what is added to a loss gives gradients, where it is computed of what has some"
    )
    assert RELATION.severity(PARAMS) == "warning"
    assert RELATION.needs(PARAMS).functions == frozenset()
    with pytest.raises(InvariantError, match="expects the backward as APIParam"):
        RELATION.monitor(())
