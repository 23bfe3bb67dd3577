"""Data that is changed where it is stored, against a naive reference."""

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
from traincheck_plugin.invariants.model import VAR_TYPES, VarNameParam
from traincheck_plugin.relations.stored_data import (
    MAX_CHANGED,
    MIN_BATCHES,
    SAMPLES,
    StoredDataRelation,
)
from traincheck_plugin.vocabulary import Variable

RELATION = StoredDataRelation()

Batch = tuple[int, int, int]
"""Number of the loader, and what is stored for images and labels when it delivers."""


def _rule(path: str = "Scenes.images") -> tuple[VarNameParam]:
    return (VarNameParam(var_name=path, var_type=VAR_TYPES["stored"], attr_name="data"),)


def _windows(batches: Sequence[Batch]) -> list[Window]:
    run, windows = RunBuilder(), []
    for step, (number, *keys) in enumerate(batches):
        loader = f"torch.utils.data.DataLoader#{number}"
        run.at(step=step)
        stored = run.variables(
            *(
                Variable(kind="stored", name=name, owner=loader, type="__main__.Scenes")
                for name in ("images", "labels")
            )
        )
        with run.calling("torch.utils.data.DataLoader.__next__", object=loader):
            run.frame("end", stored, data=keys)
        windows.append(run.window())
    return windows


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(1, 2)), max_size=12))
def test_changes_are_told(batches: list[Batch]) -> None:
    windows = _windows(batches)
    for place, path in ((1, "Scenes.images"), (2, "Scenes.labels")):
        last: dict[int, int] = {}
        expected = []
        for batch in batches:
            if batch[0] in last:
                expected.append(last[batch[0]] == batch[place])
            last[batch[0]] = batch[place]
        assert [held for _, held in labels(RELATION, _rule(path), windows)] == expected


Reading = tuple[int, int, float]
"""Number of the loader, of its start, and whether reading a batch changes the images."""


def _reading(batches: Sequence[Reading]) -> list[Window]:
    run, windows = RunBuilder(), []
    for step, (number, start, changed) in enumerate(batches):
        loader = f"torch.utils.data.DataLoader#{number}"
        run.at(step=step)
        stored = run.variables(
            *(
                Variable(kind="stored", name=name, owner=loader, type="__main__.Scenes")
                for name in ("images", "notes")
            )
        )
        facts = run.variables(
            *(
                Variable(kind="loader", name=name, owner=loader, type="float")
                for name in LOADER_FACTS
            )
        )
        told = {"start": float(start)}
        with run.calling("torch.utils.data.DataLoader.__next__", object=loader):
            run.frame("end", facts, value=[told.get(name, math.nan) for name in LOADER_FACTS])
            run.frame("end", stored, value=[changed, math.nan])
        windows.append(run.window())
    return windows


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 2), st.sampled_from([0.0, 1.0, math.nan])),
        max_size=12,
    )
)
def test_reading_again_changes_nothing(batches: list[Reading]) -> None:
    expected = []
    changed = [0, 0]
    for number, start, value in batches:
        if start > 0 and not math.isnan(value):
            changed[number] += value > 0
            if not value or changed[number] > MAX_CHANGED:
                expected.append(not value)
    assert [held for _, held in labels(RELATION, (SAMPLES,), _reading(batches))] == expected


def test_what_reading_again_does_is_told() -> None:
    proposer = RELATION.proposer()
    for window in _reading([(0, 0, 0.0), (0, 1, 1.0)]):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == []
    for window in _reading([(0, 1, 0.0)]):
        proposer.observe(window)
    assert [one.params for one in proposer.hypotheses()] == [(SAMPLES,)]
    monitor = RELATION.monitor((SAMPLES,))
    *_, examples = [monitor.observe(w) for w in _reading([(0, 1, 1.0)] * (MAX_CHANGED + 1))]
    assert examples.explain(0).message == (
        "`Scenes.images` was changed while samples were read from it"
    )
    assert "not changed by reading them again" in RELATION.describe((SAMPLES,))
    assert RELATION.needs((SAMPLES,)).attributes == {
        "data": frozenset({("stored", "value"), ("loader", "value")})
    }


def test_what_stayed_in_the_reference_is_proposed() -> None:
    proposer = RELATION.proposer()
    for window in _windows([(0, 1, step) for step in range(MIN_BATCHES + 1)]):
        proposer.observe(window)
    assert [one.params for one in proposer.hypotheses()] == [_rule()]
    proposer = RELATION.proposer()
    for window in _windows([(0, 1, 1)] * MIN_BATCHES):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == []


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(_rule())
    *_, examples = [monitor.observe(window) for window in _windows([(0, 1, 1), (0, 2, 1)])]
    explanation = examples.explain(0)
    assert explanation.message == "`Scenes.images` was changed while samples were read from it"
    assert explanation.cause is not None
    assert "in place" in explanation.cause.text
    assert RELATION.describe(_rule()) == "`Scenes.images` stays as it is while its samples are read"
    assert RELATION.severity(_rule()) == "warning"
    assert RELATION.needs(_rule()).attributes == {"data": frozenset({("stored", "data")})}


def test_other_parameters_are_refused() -> None:
    with pytest.raises(InvariantError, match="expects one VarNameParam"):
        RELATION.monitor(())
    other = VarNameParam(var_name="Net", var_type=VAR_TYPES["input"], attr_name="data")
    with pytest.raises(InvariantError, match="something that a data set stores"):
        RELATION.monitor((other,))
