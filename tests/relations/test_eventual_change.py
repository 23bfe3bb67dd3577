"""Which parameters change at some time, against a naive reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NOT_RUN, Window
from traincheck_plugin.invariants.model import ConstantParam, Param
from traincheck_plugin.relations.eventual_change import CHANGED, EventualChangeRelation
from traincheck_plugin.vocabulary import GradState

RELATION = EventualChangeRelation()
OPTIMIZER = "torch.optim.SGD#0"
NAMES = ("a", "b")
FULL = ("Net#0.a", "Net#0.b")


class Row(NamedTuple):
    """What a step meets of a parameter."""

    data: int = 0
    is_held: bool = False
    ran: int = 0
    grad: GradState = GradState.NULL


class Step(NamedTuple):
    rows: Sequence[Row]
    epoch: int = 0


def _tell(step: Step) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        run.at(epoch=step.epoch, stage="training")
        parameters = run.parameters(*NAMES[: len(step.rows)])
        columns: dict[str, Any] = {
            "data": [row.data for row in step.rows],
            "grad": [row.grad for row in step.rows],
            "optimizer": [OPTIMIZER if row.is_held else "" for row in step.rows],
            "ran": [row.ran for row in step.rows],
            "requires_grad": False,
            "in_model": True,
        }
        with run.calling("torch.optim.SGD.step", object=OPTIMIZER):
            run.frame("begin", parameters, **columns)
            run.frame("end", parameters, **columns)

    return tell


def _windows(run: Sequence[Step]) -> list[Window]:
    return told([_tell(step) for step in run], list(range(1, len(run))))


def _rule(names: Sequence[str], number: int, epoch: int = 0) -> tuple[Param, ...]:
    return (
        CHANGED,
        ConstantParam(value=tuple(names)),
        ConstantParam(value=(number, epoch)),
    )


def _reference(run: Sequence[Step], names: Sequence[str], number: int, epoch: int) -> list[bool]:
    found = []
    for index, step in enumerate(run):
        verdicts = []
        for column, name in enumerate(NAMES[: len(step.rows)]):
            if f"Net#0.{name}" not in names:
                continue
            history = [one.rows[column] for one in run[: index + 1] if len(one.rows) > column]
            if any(row.data != history[0].data for row in history):
                verdicts.append(True)
            elif len(history) > number and (not epoch or step.epoch > epoch):
                is_used = any(row.ran != NOT_RUN for row in history)
                if is_used or not step.rows[column].is_held:
                    verdicts.append(False)
        if verdicts:
            found.append(all(verdicts))
    return found


rows = st.builds(
    Row,
    st.sampled_from([0, 0, 0, 0, 1]),
    st.booleans(),
    st.sampled_from([0, NOT_RUN, NOT_RUN]),
)
runs = st.lists(
    st.builds(Step, st.lists(rows, min_size=1, max_size=2), st.integers(0, 2)), max_size=8
)


@given(runs, st.sampled_from([FULL, FULL[:1], FULL[1:]]), st.integers(1, 4), st.integers(0, 1))
def test_steps_are_judged_as_the_formula_says(
    run: list[Step], names: tuple[str, ...], number: int, epoch: int
) -> None:
    found = [h for _, h in labels(RELATION, _rule(names, number, epoch), _windows(run))]
    assert found == _reference(run, names, number, epoch)


def _proposed(run: Sequence[Step]) -> list[tuple[Any, Any]]:
    proposer = RELATION.proposer()
    for window in _windows(run):
        proposer.observe(window)
    return [(h.params[1].value, h.params[2].value) for h in proposer.hypotheses()]


def test_what_changed_late_or_by_other_means_is_proposed() -> None:
    learning = Row(is_held=True, grad=GradState.NON_ZERO)
    run = [Step([learning, Row()])] + [
        Step([learning._replace(data=number), Row(data=number // 3)]) for number in range(1, 6)
    ]
    # Three steps show b as it was, the fourth shows another: a power of two, and twice of it.
    assert _proposed(run) == [(("Net#0.b",), (8, 0))]


def test_what_waits_for_an_epoch_is_given_all_of_it() -> None:
    run = [Step([Row(data=number // 5)], epoch=number // 4) for number in range(8)]
    assert _proposed(run) == [(("Net#0.a",), (6, 2))]


@pytest.mark.parametrize(
    ("number", "epoch", "expected"),
    [
        (6, 2, [False]),
        # It ends in the epoch before that of the reference, or has too few steps.
        (6, 4, []),
        (8, 2, []),
    ],
)
def test_the_end_of_the_run_ends_an_epoch(number: int, epoch: int, expected: list[bool]) -> None:
    run = [Step([Row()], epoch=number // 4) for number in range(8)]
    monitor = RELATION.monitor(_rule(FULL, number, epoch))
    for window in _windows(run):
        assert not len(monitor.observe(window))
    examples = monitor.finish()
    assert list(examples.holds) == expected
    if expected:
        explanation = examples.explain(0)
        assert explanation.message.startswith("1 parameter of which a healthy run changes")
        assert explanation.cause is not None
        assert explanation.cause.subjects == ("a",)


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor(_rule(FULL, 1))
    first, second = _windows([Step([Row(), Row()]), Step([Row(), Row()])])
    assert not len(monitor.observe(first))
    explanation = monitor.observe(second).explain(0)
    assert "2 parameters of which a healthy run changes the values" in explanation.message
    assert explanation.cause is not None
    assert explanation.cause.text.startswith("`a`, `b` never changed")


@pytest.mark.parametrize(
    "params",
    [
        (CHANGED, ConstantParam(value=("a",)), ConstantParam(value=3)),
        (CHANGED, ConstantParam(value="a"), ConstantParam(value=(3, 0))),
        (CHANGED, ConstantParam(value=("a",))),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError):
        RELATION.monitor(params)
