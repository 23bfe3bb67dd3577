"""Whether there are copies of the model and whether they follow, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.codec import decode_invariant, encode_invariant
from traincheck_plugin.invariants.model import ConstantParam, Invariant, VarTypeParam
from traincheck_plugin.relations.copies import (
    CHANGING,
    EACH_STEP,
    PRESENT,
    RULES,
    STEADY,
    CopyRelation,
)

RELATION = CopyRelation()
Copies = Sequence[int] | None
"""What the copies hold when a step begins; None where there are none."""


def _windows(steps: Sequence[Copies]) -> list[Window]:
    run = RunBuilder()
    parameters = run.parameters("a", "b")
    windows = []
    for copies in steps:
        for optimizer in ("first", "second"):
            with run.calling("torch.optim.SGD.step", object=optimizer):
                run.frame("begin", parameters, data=1)
                if copies is not None:
                    run.frame("begin", parameters, copy=list(copies))
        windows.append(run.window())
    return windows


def _holds(rule: VarTypeParam, windows: Sequence[Window]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, (rule, EACH_STEP), windows)]


given_steps = st.lists(
    st.none() | st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=8
)


@given(given_steps)
def test_copies_are_judged_as_the_formula_says(steps: list[Copies]) -> None:
    windows = _windows(steps)
    assert _holds(PRESENT, windows) == [copies is not None for copies in steps[1:]]
    pairs = [(a, b) for a, b in pairwise(steps) if a is not None and b is not None]
    assert _holds(CHANGING, windows) == [a != b for a, b in pairs]
    assert _holds(STEADY, windows) == [a == b for a, b in pairs]


@given(given_steps)
def test_what_held_is_proposed(steps: list[Copies]) -> None:
    proposer = RELATION.proposer()
    windows = _windows(steps)
    for window in windows:
        proposer.observe(window)
    assert {h.params[0] for h in proposer.hypotheses()} == {
        rule
        for rule in RULES
        if any(_holds(rule, windows)) and (rule != PRESENT or any(_holds(CHANGING, windows)))
    }


def test_what_was_left_out_is_not_compared() -> None:
    first, second, third = _windows([(1, 1), (1, 1), (1, 1)])
    empty = RunBuilder(catalog=first.catalog).window(observed=False)
    assert _holds(STEADY, [first, empty, second, third]) == [True]


@pytest.mark.parametrize(
    ("rule", "steps", "words"),
    [
        (PRESENT, [(1, 1), None], "it is the model itself"),
        (CHANGING, [(1, 1), (1, 1)], "was not updated"),
        (STEADY, [(1, 1), (1, 2)], "stay as they are in a healthy run"),
    ],
)
def test_a_failure_is_explained(rule: VarTypeParam, steps: list[Copies], words: str) -> None:
    monitor = RELATION.monitor((rule, EACH_STEP))
    first, second = _windows(steps)
    monitor.observe(first)
    examples = monitor.observe(second)
    assert examples.holds.tolist() == [False]
    cause = examples.explain(0).cause
    assert cause is not None
    assert words in cause.text


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_has_words_and_a_form_on_disk(rule: VarTypeParam) -> None:
    assert "copy of the model" in RELATION.describe((rule, EACH_STEP))
    invariant = Invariant(relation=RELATION.name, params=(rule, EACH_STEP))
    assert decode_invariant(encode_invariant(invariant)).params == (rule, EACH_STEP)


def test_another_rhythm_is_refused() -> None:
    with pytest.raises(InvariantError, match="speaks of copies"):
        RELATION.monitor((CHANGING, ConstantParam(value=2)))
