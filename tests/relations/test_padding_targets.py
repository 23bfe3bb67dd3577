"""Targets do not count where there is padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.inference.corpus import is_general
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, Param
from traincheck_plugin.relations.losses import BACKWARD
from traincheck_plugin.relations.padding_targets import MAX_COUNTED, PaddingTargetsRelation
from traincheck_plugin.vocabulary import Variable

RELATION = PaddingTargetsRelation()
PARAMS: tuple[Param, ...] = (BACKWARD,)


def _windows(*masks: Sequence[float]) -> list[Window]:
    """Return backwards that tell the share of padding that counts, for each of some masks."""
    run = RunBuilder()
    variables = [
        run.variables(
            Variable(kind="padding", name=f"mask{n}", owner="__main__.GPT#0", type="nll_loss")
        )
        for n in range(len(masks))
    ]
    windows = []
    for shares in zip(*masks, strict=True):
        with run.calling("torch.Tensor.backward", role="backward"):
            for variable, share in zip(variables, shares, strict=True):
                run.frame("begin", variable, value=share)
        windows.append(run.window())
    return windows


def _held(*masks: Sequence[float]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, PARAMS, _windows(*masks))]


def _naive(shares: Sequence[float]) -> list[bool | None]:
    found: list[bool | None] = []
    num_failed = 0
    for share in shares:
        if math.isnan(share):
            found.append(None)
            continue
        num_failed = num_failed + 1 if share > MAX_COUNTED else 0
        found.append(None if num_failed == 1 else num_failed == 0)
    return found


SHARES = st.sampled_from([0.0, MAX_COUNTED, 0.6, 1.0, math.nan])


@given(st.lists(st.tuples(SHARES, SHARES), max_size=8))
def test_padding_that_counts_twice_in_a_row_is_told(several: list[tuple[float, float]]) -> None:
    if not several:
        return
    first, second = zip(*several, strict=True)
    both = zip(_naive(first), _naive(second), strict=True)
    assert _held(first, second) == [held for two in both for held in two if held is not None]


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(PARAMS)
    before, after = _windows([1.0, 1.0])
    assert not len(monitor.observe(before))
    explanation = monitor.observe(after).explain(0)
    assert explanation.message == "100% of what `GPT.mask0` tells to be padding counts in nll_loss"
    assert explanation.cause is not None
    assert "are not set to its ignore_index" in explanation.cause.text


@pytest.mark.parametrize(("share", "number"), [(0.0, 1), (1.0, 1), (math.nan, 0)])
def test_it_is_proposed_where_padding_is_told(share: float, number: int) -> None:
    proposer = RELATION.proposer()
    for window in _windows([share]):
        proposer.observe(window)
    hypotheses = list(proposer.hypotheses())
    assert hypotheses == [Hypothesis(relation=RELATION.name, params=PARAMS)] * number
    assert all(is_general(hypothesis) for hypothesis in hypotheses)


def test_the_rule_has_words_and_no_other_form() -> None:
    assert RELATION.describe(PARAMS).startswith("targets do not count where a mask")
    assert RELATION.severity(PARAMS) == "warning"
    with pytest.raises(InvariantError, match="expects the backward"):
        RELATION.monitor((BACKWARD, ConstantParam(value=1)))
