"""Teachers in training mode, against a naive reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import RUN_WITHOUT_GRADIENTS, Window
from traincheck_plugin.invariants.model import VAR_TYPES, Param, VarTypeParam
from traincheck_plugin.relations.teacher_mode import TEACHING, TeacherModeRelation
from traincheck_plugin.vocabulary import Variable

RELATION = TeacherModeRelation()
RULE: tuple[Param, ...] = (TEACHING,)

OWNER = "__main__.Lesson#0"
PARTS = {"student": (8, 4), "teacher.first": (8, 16), "teacher.last": (4, 16)}
"""Parts with a weight and dropout each, and the shape of the weight."""


class Step(NamedTuple):
    """What a step shows of each part.

    Attributes:
        alone: parts that ran without gradients only.
        held: parts that an optimizer holds.
        trains: parts whose dropout is in training mode.
        narrow: whether the teacher has the shape of the student.
    """

    alone: frozenset[str] = frozenset({"teacher.first", "teacher.last"})
    held: frozenset[str] = frozenset({"student"})
    trains: frozenset[str] = frozenset({"student"})
    narrow: bool = False


HEALTHY = Step()
FORGOTTEN = Step(trains=frozenset(PARTS))


def _windows(steps: Sequence[Step], owner: str = OWNER) -> list[Window]:
    run, windows = RunBuilder(), []
    for number, step in enumerate(steps):
        run.at(step=number, stage="training")
        shapes = {part: (8, 4) if step.narrow else shape for part, shape in PARTS.items()}
        weights = run.variables(
            *(
                Variable(
                    kind="parameter",
                    name=f"{part}.weight",
                    owner=owner,
                    type="torch.nn.Parameter",
                    shape=shape,
                )
                for part, shape in shapes.items()
            )
        )
        drops = [f"{part}.drop" for part in PARTS]
        modules = run.parameters("", *drops, kind="module", owner=owner)
        with run.calling("torch.autograd.backward"):
            run.frame(
                "begin",
                modules,
                value=[1.0, *(float(part in step.trains) for part in PARTS)],
                number=[0.0] + [1.0] * len(PARTS),
            )
        with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
            run.frame(
                "begin",
                weights,
                ran=[RUN_WITHOUT_GRADIENTS if part in step.alone else 0 for part in PARTS],
                optimizer=["torch.optim.SGD#0" if part in step.held else "" for part in PARTS],
            )
        windows.append(run.window())
    return windows


def _expected(steps: Sequence[Step]) -> list[bool]:
    counted, failed = [], 0
    for step in steps:
        shapes = {part: (8, 4) if step.narrow else shape for part, shape in PARTS.items()}
        free = {part for part in PARTS if part in step.alone and part not in step.held}
        # The largest parts of which that is true of all.
        whole = {"teacher.first", "teacher.last"} <= free
        groups = [{"student"} & free, free - {"student"} if whole else set()]
        groups += [] if whole else [{part} for part in free - {"student"}]
        if free == set(PARTS):
            groups = [free]
        trained = Counter(shapes[part] for part in step.held)
        teaching = set()
        for group in groups:
            if Counter(shapes[part] for part in group) - trained:
                teaching |= group
        if not teaching:
            continue
        held = not teaching & step.trains
        failed = 0 if held else failed + 1
        if held or failed > 1:
            counted.append(held)
    return counted


SUBSETS = st.sets(st.sampled_from(list(PARTS))).map(frozenset)


@given(st.lists(st.builds(Step, SUBSETS, SUBSETS, SUBSETS, st.booleans()), max_size=6))
def test_steps_are_judged_as_the_formula_says(steps: list[Step]) -> None:
    assert [holds for _, holds in labels(RELATION, RULE, _windows(steps))] == _expected(steps)


def test_what_it_is_for() -> None:
    def held(*steps: Step, owner: str = OWNER) -> list[bool]:
        return [holds for _, holds in labels(RELATION, RULE, _windows(steps, owner))]

    assert held(HEALTHY, HEALTHY) == [True, True]
    assert held(HEALTHY, FORGOTTEN, FORGOTTEN, HEALTHY) == [True, False, True]
    # An average of what is trained may be meant to have noise of its own.
    copy = FORGOTTEN._replace(narrow=True, alone=frozenset({"teacher.first"}))
    assert held(copy, copy) == []
    # So may what has gradients: it is trained, or its inputs are.
    assert held(*[FORGOTTEN._replace(alone=frozenset())] * 2) == []
    assert held(HEALTHY, FORGOTTEN, FORGOTTEN, owner="Net#1") == [True, False]


def test_it_is_proposed_where_something_teaches_in_eval_mode() -> None:
    def proposed(*steps: Step) -> list[tuple[Param, ...]]:
        proposer = RELATION.proposer()
        for window in _windows(steps):
            proposer.observe(window)
        return [hypothesis.params for hypothesis in proposer.hypotheses()]

    assert proposed(HEALTHY) == [RULE]
    assert proposed(FORGOTTEN, FORGOTTEN) == []
    assert proposed(Step(alone=frozenset())) == []


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(RULE)
    *_, examples = [monitor.observe(window) for window in _windows([FORGOTTEN] * 2)]
    explanation = examples.explain(0)
    assert explanation.message == (
        "`Lesson.teacher.first.drop`, `Lesson.teacher.last.drop` are in training mode, in a part "
        "that is not trained"
    )
    assert explanation.cause is not None
    assert "an `eval()` is missing" in explanation.cause.text
    assert "is in eval mode" in RELATION.describe(RULE)
    assert RELATION.severity(RULE) == "warning"
    assert set(RELATION.needs(RULE).attributes) == {"backward", "step"}


def test_other_parameters_are_refused() -> None:
    other = VarTypeParam(var_type=VAR_TYPES["module"], attr_name="value")
    with pytest.raises(InvariantError, match="expects a VarTypeParam about the mode of modules"):
        RELATION.monitor((other,))
