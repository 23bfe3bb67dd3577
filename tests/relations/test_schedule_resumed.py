"""Schedules that begin anew with an optimizer that goes on, against a naive reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.schedule_resumed import LOAD, ScheduleResumedRelation
from traincheck_plugin.vocabulary import Item, Variable

RELATION = ScheduleResumedRelation()
MOVED = APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler")
PARAMS = (MOVED, LOAD)
OPTIMIZER, OTHER = "torch.optim.SGD#0", "torch.optim.SGD#1"
SCHEDULER = "torch.optim.lr_scheduler.StepLR"

Event = Callable[[RunBuilder], object]


def _about(optimizer: str) -> list[Item]:
    return [Item(path="optimizer", type="str", value=optimizer)]


def _made(number: int = 0, optimizer: str = OPTIMIZER) -> Event:
    return lambda run: run.call(
        f"{SCHEDULER}.__init__",
        role="construct",
        object=f"{SCHEDULER}#{number}",
        inputs=_about(optimizer),
    )


def _load(lr: float = 0.03, *, owner: str = OPTIMIZER, target: str = OPTIMIZER) -> Event:
    """A load into an optimizer, in which the rate of 0.1 that *owner* has becomes another."""

    def tell(run: RunBuilder) -> None:
        options = run.variables(
            *(
                Variable(kind="group", name=f"0.{name}", owner=owner, type="float")
                for name in ("lr", "momentum")
            )
        )
        with run.calling("torch.optim.SGD.load_state_dict", object=target):
            run.frame("begin", options, value=[0.1, 0.5])
            run.frame("end", options, value=[lr, 0.9])

    return tell


def _step(optimizer: str = OPTIMIZER) -> Event:
    return lambda run: run.call("torch.optim.SGD.step", object=optimizer)


def _move(
    number: int = 0, *, first: bool = False, optimizer: str = OPTIMIZER, epoch: bool = False
) -> Event:
    told_besides = [Item(path="first", type="str", value="yes")] if first else []
    return lambda run: run.call(
        f"{SCHEDULER}.step",
        object=f"{SCHEDULER}#{number}",
        inputs=[*_about(optimizer), *[Item(path="1", type="float")] * epoch],
        outputs=told_besides,
    )


FIRST = _move(first=True)


def _held(*run: Event) -> list[bool]:
    return [holds for _, holds in labels(RELATION, PARAMS, told(run, range(1, len(run))))]


def test_a_schedule_that_goes_on_or_begins_anew() -> None:
    assert _held(_made(), _load(), *[_step(), _move()] * 2) == [True] * 2
    assert _held(_made(), _load(), _step(), FIRST, _step(), _move()) == [False] * 2
    # One of two.
    both = [_made(0), _made(1), _load(), _step(), FIRST, _move(1), _step(), _move(), _move(1)]
    assert _held(*both) == [False, True, False, True]


@pytest.mark.parametrize(
    "run",
    [
        # Nothing was loaded, or nothing that was on its way.
        [_made(), _step(), FIRST],
        [_made(), _load(0.1), _step(), FIRST],
        [_made(), _load(owner=OTHER), _step(), FIRST],
        # It is moved on to its place, or was made for what follows.
        [_made(), _load(), FIRST, _move(), _step(), _move()],
        [_load(), _made(), _step(), FIRST],
        # A rollback: it had moved already.
        [_made(), _step(), FIRST, _load(), _step(), _move()],
        # It is told where it is.
        [_made(), _load(), _step(), _move(first=True, epoch=True), _step(), _move()],
        # Of another optimizer.
        [_made(), _load(), _step(), _move(optimizer=OTHER, first=True)],
        [_made(), _load(), _step(OTHER), FIRST],
    ],
)
def test_what_is_no_example(run: list[Event]) -> None:
    assert _held(*run) == []


def test_what_was_not_seen_is_forgotten() -> None:
    run = RunBuilder()
    monitor = RELATION.monitor(PARAMS)
    for event in (_made(), _load(), _step()):
        event(run)
    monitor.observe(run.window())
    monitor.observe(run.window(observed=False))
    FIRST(run)
    assert len(monitor.observe(run.window())) == 0


EVENTS = {
    "made": _made(),
    "load": _load(),
    "same": _load(0.1),
    "step": _step(),
    "move": None,
}


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=14))
def test_moves_are_judged_as_the_formula_says(names: list[str]) -> None:
    """The scheduler is one, and made once: its moves count from there."""
    run: list[Event] = []
    expected = []
    made = names.index("made") if "made" in names else len(names)
    names = [name for place, name in enumerate(names) if name != "made" or place == made]
    moves: list[int] = []
    for place, name in enumerate(names):
        if name != "move":
            event = EVENTS[name]
            assert event is not None
            run.append(event)
            continue
        if place < made:
            continue
        moves.append(place)
        run.append(_move(first=len(moves) == 1))
        loads = [at for at in range(place) if names[at] == "load"]
        # The last load counts, and the scheduler is judged if it waited for its first move then.
        if loads and made < loads[-1] < moves[0]:
            began = "step" in names[loads[-1] : moves[0]]
            if began:
                expected.append(False)
    assert _held(*run) == expected


def _proposed(*run: Event) -> list[object]:
    proposer = RELATION.proposer()
    for window in told(run, range(1, len(run))):
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


def test_it_is_proposed_where_a_load_went_back_to_the_middle() -> None:
    assert _proposed(_made(), _load(), _step(), _move()) == [PARAMS]
    assert _proposed(_made(), _load(0.1), _step(), _move()) == []
    assert _proposed(_load(), _step()) == []


def test_the_rule_and_its_cause_have_words() -> None:
    [window] = told([_made(), _load(), _step(), FIRST], ())
    explanation = RELATION.monitor(PARAMS).observe(window).explain(0)
    assert explanation.message == (
        "StepLR.step began its schedule anew, and Optimizer.load_state_dict (train.py:1 in train) "
        "put the learning rate to where another had taken it"
    )
    assert explanation.cause is not None
    assert "was not loaded with that of its optimizer" in explanation.cause.text
    assert RELATION.describe(PARAMS) == (
        "LRScheduler.step goes on from where the schedule was when the state that "
        "Optimizer.load_state_dict is given was saved"
    )
    assert RELATION.severity(PARAMS) == "warning"
    assert RELATION.regime(PARAMS) == ()
    wanted = frozenset({("group", "value")})
    assert RELATION.needs(PARAMS).attributes == {"checkpoint": wanted}
