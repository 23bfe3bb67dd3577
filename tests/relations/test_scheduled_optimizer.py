"""Schedulers of optimizers that do not step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.scheduled_optimizer import IN_A_ROW, ScheduledOptimizerRelation
from traincheck_plugin.vocabulary import Item

RELATION = ScheduledOptimizerRelation()
PARAMS = (
    APIParam(api_full_name="torch.optim.Optimizer.step", role="step"),
    APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler"),
)
OLD, NEW = "torch.optim.Adam#0", "torch.optim.Adam#1"

Event = Callable[[RunBuilder], object]


def _step(
    target: str,
    *,
    holders: Sequence[str] = (),
    lr: float = 0.1,
    learns: Sequence[bool] = (True, True),
) -> Event:
    """A step that shows which of two parameters learn, and who holds them: itself, unless told."""

    def tell(run: RunBuilder) -> None:
        with run.calling("torch.optim.Adam.step", object=target):
            codes = run.parameters("a", "b")
            held_by = list(holders) or target
            run.frame("begin", codes, optimizer=held_by, lr=lr, requires_grad=list(learns))

    return tell


def _move(target: str = OLD) -> Event:
    """A call of a scheduler of *target*."""

    def tell(run: RunBuilder) -> None:
        scheduler = "torch.optim.lr_scheduler.StepLR"
        named = [Item(path="optimizer", type="str", value=target)] * bool(target)
        run.call(f"{scheduler}.step", object=f"{scheduler}#0", inputs=named)

    return tell


def _held(*run: Event) -> list[bool]:
    return [holds for _, holds in labels(RELATION, PARAMS, told(run, range(1, len(run))))]


def test_a_scheduler_whose_optimizer_steps() -> None:
    assert _held(*[_step(OLD), _move()] * 4) == [True] * 3
    # By epochs, after others that share the loop.
    loop = [_step(NEW, holders=[NEW, OLD]), _step(OLD, holders=[NEW, OLD])]
    assert _held(*[*loop * 3, _move()] * 4) == [True] * 3


def test_a_scheduler_of_an_optimizer_that_was_replaced() -> None:
    run = [_step(OLD), _move(), _step(OLD), _move(), *[_step(NEW), _move()] * (IN_A_ROW + 1)]
    assert _held(*run) == [True, False, False]
    assert _held(*[_step(NEW), _move()] * (IN_A_ROW + 1)) == [False]


@pytest.mark.parametrize(
    "run",
    [
        # It holds parameters of its own, and waits for its turn.
        [_step(NEW, holders=[NEW, OLD]), _move()],
        # A wrapper: the rates of what steps follow all the same.
        [_step(NEW, lr=0.3), _move(), _step(NEW, lr=0.2), _move()],
        # A schedule that is wound on.
        [_move(), _move()],
        # Nobody knows whose scheduler it is.
        [_step(NEW), _move("")],
    ],
)
def test_what_is_no_example(run: list[Event]) -> None:
    assert _held(*run * 6) == []


def test_an_optimizer_of_what_is_frozen_does_not_wait() -> None:
    def held(learns: Sequence[bool]) -> list[bool]:
        step = _step(NEW, holders=[NEW, OLD], learns=learns)
        return _held(_step(OLD), _move(), _step(OLD), _move(), *[step, _move()] * (IN_A_ROW + 1))

    assert held([True, True]) == [True]
    assert held([True, False]) == [True, False, False]


def test_the_cause_is_told() -> None:
    (window,) = told([_step(NEW), _move()] * (IN_A_ROW + 1), [])
    explanation = RELATION.monitor(PARAMS).observe(window).explain(0)
    assert explanation.message == (
        "StepLR.step moved the schedule of Adam#0, which does not step, and others do"
    )
    assert explanation.cause is not None
    assert explanation.cause.subjects == (OLD,)


def test_steps_that_are_left_out() -> None:
    run = RunBuilder()
    windows = []
    for number in range(2 * IN_A_ROW):
        for event in (_step(NEW), _move()):
            event(run)
        windows.append(run.window(observed=number != IN_A_ROW))
    assert labels(RELATION, PARAMS, windows) == []


@given(
    st.lists(
        st.sampled_from(["step", "other", "shared", "move"]),
        max_size=40,
    ),
    st.sets(st.integers(1, 39)),
)
def test_calls_are_judged_as_the_formula_says(run: list[str], cuts: set[int]) -> None:
    events = {
        "step": _step(OLD),
        "other": _step(NEW),
        "shared": _step(NEW, holders=[NEW, OLD]),
        "move": _move(),
    }
    expected, since, number = [], None, 0
    last_other = ""
    for word in run:
        if word == "move":
            if since is not None and since:
                if "step" in since:
                    number = 0
                    expected.append(True)
                elif last_other == "shared":
                    number = 0
                else:
                    number += 1
                    if number >= IN_A_ROW:
                        expected.append(False)
            since = [] if since is None or since else since
        elif since is not None:
            since.append(word)
        if word in ("other", "shared"):
            last_other = word
    found = labels(RELATION, PARAMS, told([events[word] for word in run], sorted(cuts)))
    assert [holds for _, holds in found] == expected


def test_the_rule_is_proposed_for_what_is_called() -> None:
    proposer = RELATION.proposer()
    for window in told([_step(OLD), _move()], []):
        proposer.observe(window)
    assert [hypothesis.params for hypothesis in proposer.hypotheses()] == [PARAMS]
    assert RELATION.describe(PARAMS) == (
        "the optimizer that LRScheduler.step moves is one that Optimizer.step is called on"
    )
