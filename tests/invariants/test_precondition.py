"""What a clause says of one context; learning preconditions is tested in tests/inference."""

from __future__ import annotations

import pytest

from traincheck_plugin.invariants.codec_preconditions import decode_precondition
from traincheck_plugin.invariants.precondition import GENERAL_VALUES, Clause
from traincheck_plugin.vocabulary import Context

# What `META_VARS.update(phase="warm up", level=1, ratio=0.5, frozen=True, teacher=None)` leaves.
CONTEXT = Context(
    step=3,
    stage="training",
    annotations=(
        ("frozen", "True"),
        ("level", "1"),
        ("phase", "warm up"),
        ("ratio", "0.5"),
        ("teacher", "None"),
    ),
)


def holds(name, *values, context=CONTEXT):
    return Clause(type="constant", prop_name=f"meta_vars.{name}", values=values).holds([context])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", 3),
        ("stage", "training"),
        ("phase", "warm up"),
        ("level", 1),
        ("ratio", 0.5),
        ("frozen", True),
        ("teacher", None),
    ],
)
def test_a_literal_is_compared_with_what_the_script_said(name, value):
    assert holds(name, value)
    assert holds(name, "something else", value)
    assert not holds(name, "something else")


@pytest.mark.parametrize("value", [None, "none", "None", *GENERAL_VALUES])
def test_an_unknown_property_meets_nothing(value):
    assert not holds("unheard_of", value)


@pytest.mark.parametrize(
    ("value", "met_by"),
    [
        ("zero", [0]),
        ("non_zero", [-1, 1, 2]),
        ("above_zero", [1, 2]),
        ("below_zero", [-1]),
        ("non_empty", [-1, 1, 2]),
    ],
)
def test_general_values(value, met_by):
    numbers = [-1, 0, 1, 2]
    assert [n for n in numbers if holds("step", value, context=Context(step=n))] == met_by


def test_general_values_are_all_tested():
    (marks,) = test_general_values.pytestmark
    assert tuple(value for value, _ in marks.args[1]) == GENERAL_VALUES


def test_null_is_how_traincheck_writes_none():
    clause = {
        "type": "constant",
        "prop_name": "meta_vars.teacher",
        "additional_path": "None",
        "prop_dtype": "None",
        "values": [None],
    }
    precondition = decode_precondition(
        {"parent_func_call_pre": {"inverted": False, "preconditions": [{"clauses": [clause]}]}}
    )
    assert precondition.holds(CONTEXT)
    assert not precondition.holds(Context(annotations=(("teacher", "resnet"),)))
    assert not precondition.holds(Context())
