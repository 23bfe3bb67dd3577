"""Results that are bounded by an argument, against a naive reference."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.recorder.recording import LIFECYCLE, record
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam, ConstantParam
from traincheck_plugin.relations.threshold import AT_LEAST, AT_MOST, ThresholdRelation
from traincheck_plugin.vocabulary import Item

RELATION = ThresholdRelation()
NAME = "package.generate"
GIVEN = APIParam(api_full_name=NAME, argument="max_length", role="function")
RETURNED = APIParam(api_full_name=NAME, argument="result:", attribute="shape.1", role="function")

calls = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=8)
cuts = st.sets(st.integers(0, 8), max_size=3)


def _call(bound: int, size: int):
    def tell(run: RunBuilder) -> None:
        run.call(
            NAME,
            inputs=[Item(path="max_length", type="int", value=bound)],
            outputs=[Item(path="", type="torch.Tensor", dtype="torch.int64", shape=(2, size))],
        )

    return tell


def _rule(side: str):
    return (GIVEN, RETURNED, ConstantParam(value=side))


@given(calls, cuts)
def test_calls_are_judged_as_the_formula_says(run, cut) -> None:
    windows = told([_call(*call) for call in run], sorted(cut))
    found = [h for _, h in labels(RELATION, _rule(AT_MOST), windows)]
    assert found == [size <= bound for bound, size in run]
    found = [h for _, h in labels(RELATION, _rule(AT_LEAST), windows)]
    assert found == [size >= bound for bound, size in run]


@given(calls, cuts)
def test_bounds_that_held_and_were_reached_are_proposed(run, cut) -> None:
    proposer = RELATION.proposer()
    for window in told([_call(*call) for call in run], sorted(cut)):
        proposer.observe(window)
    proposed = {
        h.params[2].value for h in proposer.hypotheses() if h.params[1].attribute == "shape.1"
    }
    reached = any(size == bound for bound, size in run)
    assert proposed == {
        side
        for side, holds in (
            (AT_MOST, all(size <= bound for bound, size in run)),
            (AT_LEAST, all(size >= bound for bound, size in run)),
        )
        if holds and reached
    }


def test_the_explanation_tells_both_numbers() -> None:
    (window,) = told([_call(3, 3), _call(2, 4)], [])
    examples = RELATION.monitor(_rule(AT_MOST)).observe(window)
    explanation = examples.explain(1)
    assert explanation.message == "dimension 1 of the result of generate is 4, expected at most 2"
    assert explanation.cause is not None
    assert "`max_length`" in explanation.cause.text
    assert RELATION.describe(_rule(AT_MOST)) == (
        "dimension 1 of the result of generate is at most its argument `max_length`"
    )


def test_another_side_is_refused() -> None:
    with pytest.raises(InvariantError, match="needs 'at most' or 'at least', got 'about'"):
        RELATION.monitor(_rule("about"))


def test_numbers_of_named_packages_are_recorded(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "texts.py").write_text(
        "import torch\n\ndef generate(start, max_length):\n    return torch.zeros(1, max_length)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import texts

    def generate():
        for length in (3, 5, 4):
            texts.generate(torch.zeros(1), max_length=length)

    recording = record(generate, LIFECYCLE, modules_to_instrument=("texts",))
    sys.modules.pop("texts")
    found = recording.of_role("instrumented")
    assert [call.inputs[-1].value for call in found] == [3, 5, 4]
    proposer = RELATION.proposer()
    for window in recording.windows:
        proposer.observe(window)
    described = {RELATION.describe(h.params) for h in proposer.hypotheses()}
    assert "dimension 1 of the result of generate is at most its argument `max_length`" in described
