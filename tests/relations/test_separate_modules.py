"""Layers that are one module, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, VarNameParam
from traincheck_plugin.relations.separate_modules import MIN_FORWARDS, SeparateModulesRelation
from traincheck_plugin.vocabulary import Variable

RELATION = SeparateModulesRelation()

Forward = tuple[str, Sequence[str]]
"""Class of a model, and the further names of its modules."""


def _rule(root: str = "Net") -> tuple[VarNameParam]:
    return (VarNameParam(var_name=root, var_type=VAR_TYPES["alias"], attr_name="value"),)


def _windows(forwards: Sequence[Forward]) -> list[Window]:
    run, windows = RunBuilder(), []
    for step, (root, names) in enumerate(forwards):
        owner = f"__main__.{root}#0"
        run.at(step=step)
        [given_] = run.variables(
            Variable(kind="input", name="0", owner=owner, type="torch.Tensor")
        ).tolist()
        with run.calling(f"__main__.{root}.forward", role="forward", object=owner):
            run.frame("end", run.variables(run.catalog.variables[given_]), data=step + 1, value=8)
            if names:
                aliases = run.variables(
                    *(Variable(kind="alias", name=n, owner=owner, type="Block") for n in names)
                )
                run.frame("end", aliases, value=1.0)
        windows.append(run.window())
    return windows


@given(
    st.lists(
        st.tuples(st.sampled_from(["Net", "Other"]), st.sampled_from([(), ("a",), ("a", "b")])),
        max_size=8,
    )
)
def test_modules_under_several_names_are_told(forwards: list[Forward]) -> None:
    expected = [not names for root, names in forwards if root == "Net"]
    assert [held for _, held in labels(RELATION, _rule(), _windows(forwards))] == expected


def test_what_the_reference_has_under_one_name_is_proposed() -> None:
    proposer = RELATION.proposer()
    for window in _windows([("Net", ()), ("Other", ("a",))] * MIN_FORWARDS):
        proposer.observe(window)
    assert [one.params for one in proposer.hypotheses()] == [_rule()]
    proposer = RELATION.proposer()
    for window in _windows([("Net", ())] * (MIN_FORWARDS - 1)):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == []


def test_the_cause_is_told() -> None:
    [window] = _windows([("Net", ("blocks.1", "blocks.2"))])
    explanation = RELATION.monitor(_rule()).observe(window).explain(0)
    assert explanation.message == (
        "`blocks.1`, `blocks.2` of Net are there under another name already"
    )
    assert explanation.cause is not None
    assert "a list of modules was multiplied" in explanation.cause.text
    assert RELATION.describe(_rule()) == "Net has each of its modules under one name"
    assert RELATION.severity(_rule()) == "warning"
    assert ("alias", "value") in RELATION.needs(_rule()).attributes["forward"]


def test_other_parameters_are_refused() -> None:
    with pytest.raises(InvariantError, match="expects one VarNameParam"):
        RELATION.monitor(())
    other = VarNameParam(var_name="Net", var_type=VAR_TYPES["input"], attr_name="data")
    with pytest.raises(InvariantError, match="the aliases of a class"):
        RELATION.monitor((other,))
