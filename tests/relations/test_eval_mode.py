"""What stays in eval mode, against a naive reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Param
from traincheck_plugin.relations.eval_mode import IN_EVAL_MODE, MIN_BACKWARDS, EvalModeRelation

RELATION = EvalModeRelation()
MODULES = ("", "student", "student.drop", "teacher", "teacher.drop")

Flags = Mapping[str, bool]
"""Whether each module is in training mode."""

HEALTHY: Flags = {name: not name.startswith("teacher") for name in MODULES}


def _rule(*parts: str, length: int = 100) -> tuple[Param, ...]:
    return IN_EVAL_MODE, ConstantParam(value=parts), ConstantParam(value=length)


def _windows(run_of: Sequence[Flags], owner: str = "__main__.Net#0") -> list[Window]:
    run, windows = RunBuilder(), []
    for step, flags in enumerate(run_of, start=7):
        run.at(step=step, stage="training")
        modules = run.parameters(*flags, kind="module", owner=owner)
        with run.calling("torch.autograd.backward"):
            run.frame("begin", modules, value=[float(flag) for flag in flags.values()])
            # What a hook leaves is another question.
            run.frame("end", modules, value=[1.0] * len(flags))
        run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
        windows.append(run.window())
    return windows


FLAGS = st.fixed_dictionaries({name: st.booleans() for name in MODULES})


@given(
    st.lists(FLAGS, max_size=6),
    st.lists(st.sampled_from(MODULES), min_size=1, unique=True),
    st.integers(0, 6),
)
def test_modules_are_judged_as_the_formula_says(
    run_of: list[Flags], parts: list[str], length: int
) -> None:
    named = [f"Net.{part}" if part else "Net" for part in parts]
    expected = []
    for flags in run_of[:length]:
        within = [
            name
            for name in MODULES
            if any(part in ("", name) or name.startswith(f"{part}.") for part in parts)
        ]
        expected.append(not any(flags[name] for name in within))
    found = labels(RELATION, _rule(*named, length=length), _windows(run_of))
    assert [holds for _, holds in found] == expected
    assert labels(RELATION, _rule("Other"), _windows(run_of)) == []


def _proposed(run_of: Sequence[Flags]) -> list[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(run_of):
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


def test_the_outermost_parts_are_proposed() -> None:
    run_of = [HEALTHY] * MIN_BACKWARDS
    assert _proposed(run_of) == [_rule("Net.teacher", length=MIN_BACKWARDS)]
    assert _proposed(run_of[1:]) == []
    all_in_eval = dict.fromkeys(MODULES, False)
    assert _proposed([all_in_eval] * MIN_BACKWARDS) == [_rule("Net", length=MIN_BACKWARDS)]
    assert _proposed([dict.fromkeys(MODULES, True)] * MIN_BACKWARDS) == []
    # One of its modules trains now and then.
    mixed = [*run_of, HEALTHY | {"teacher.drop": True}]
    assert _proposed(mixed) == []
    only_dropout = [HEALTHY | {"teacher": True}] * MIN_BACKWARDS
    assert _proposed(only_dropout) == [_rule("Net.teacher.drop", length=MIN_BACKWARDS)]


def test_it_is_said_what_is_in_training_mode() -> None:
    [window] = _windows([dict.fromkeys(MODULES, True)])
    explanation = RELATION.monitor(_rule("Net.teacher")).observe(window).explain(0)
    assert explanation.message == (
        "`Net.teacher` is in training mode when backward runs; in the reference in eval mode"
    )
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("Net.teacher",)
    assert "frozen parts included" in explanation.cause.text


def test_the_rule_has_words() -> None:
    rule = _rule("Net.a", "Net.b", "Net.c", "Net.d", length=5)
    assert RELATION.describe(rule) == (
        "`Net.a`, `Net.b`, `Net.c` and 1 other parts stay in eval mode in the first 5 training "
        "steps"
    )
    assert RELATION.severity(rule) == "warning"
    assert RELATION.needs(rule).attributes == {"backward": frozenset({("module", "value")})}


@pytest.mark.parametrize(
    "params",
    [
        (),
        _rule(),
        (IN_EVAL_MODE, ConstantParam(value="Net"), ConstantParam(value=3)),
        (IN_EVAL_MODE, ConstantParam(value=("Net",)), ConstantParam(value="3")),
        (IN_EVAL_MODE, ConstantParam(value=("Net", 3)), ConstantParam(value=3)),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="EvalModeRelation expects"):
        RELATION.monitor(params)
