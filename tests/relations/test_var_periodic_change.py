"""Which variables change with every training step, and which never, against a naive reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, training_run
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NOT_RUN, Window
from traincheck_plugin.invariants.jsonl import dump_invariants, load_invariants
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Invariant,
    Param,
    VarTypeParam,
)
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.var_periodic_change import (
    FIXED,
    TRACKING,
    UPDATED,
    VarPeriodicChangeRelation,
)
from traincheck_plugin.vocabulary import GradState

RELATION = VarPeriodicChangeRelation()
FIRST, SECOND = "torch.optim.SGD#0", "torch.optim.SGD#1"
NAMES = ("a", "b", "c")


class Row(NamedTuple):
    """What a step meets of a parameter, and whether it changes there."""

    changes: bool = True
    optimizer: str = FIRST
    grad: GradState = GradState.NON_ZERO
    lr: float = 0.1
    ran: int = 0


class Step(NamedTuple):
    """A call of an optimizer, about the parameters of `NAMES`."""

    rows: Sequence[Row]
    optimizer: str = FIRST
    fails: bool = False


class Forward(NamedTuple):
    """A forward pass: whether each buffer changes in it, and whether autograd records."""

    changes: Sequence[bool]
    grad_enabled: bool = True


def _tell(event: Step | Forward) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        if isinstance(event, Forward):
            buffers = run.parameters(*NAMES[: len(event.changes)], kind="buffer")
            run.at(grad_enabled=event.grad_enabled)
            with run.calling("__main__.Net.forward", object="__main__.Net#0"):
                run.frame("begin", buffers, data=1)
                run.frame("end", buffers, data=[2 if change else 1 for change in event.changes])
            run.at(grad_enabled=True)
            return
        parameters = run.parameters(*NAMES[: len(event.rows)])
        values = {
            "grad": [row.grad for row in event.rows],
            "lr": [row.lr for row in event.rows],
            "optimizer": [row.optimizer for row in event.rows],
            "ran": [row.ran for row in event.rows],
        }
        exception = "ValueError" if event.fails else ""
        with run.calling("torch.optim.SGD.step", object=event.optimizer, exception=exception):
            run.frame("begin", parameters, data=1, **values)
            run.frame("end", parameters, data=[2 if r.changes else 1 for r in event.rows], **values)

    return tell


Batch = Sequence[Step | Forward]


def _windows(batches: Sequence[Batch]) -> list[Window]:
    """Tell the events of each batch and close a window after it."""
    events = [event for batch in batches for event in batch]
    ends = [sum(len(batch) for batch in batches[: i + 1]) for i in range(len(batches))]
    return told([_tell(event) for event in events], ends[:-1])


def _is_training(batch: Batch) -> bool:
    return any(isinstance(event, Step) and not event.fails for event in batch)


def _takes_part(step: Step) -> bool:
    """Return whether something of the model, which all rows are of, has to do with training."""
    return any(row.optimizer or row.grad > GradState.NULL for row in step.rows)


def _parameters(batch: Batch, *, with_idle: bool = False) -> dict[str, bool]:
    """Return of each parameter that some step of *batch* shows, whether it changes.

    Those of modules that did not run are left out, unless *with_idle*.
    """
    found: dict[str, bool] = {}
    for event in batch:
        if not isinstance(event, Step):
            continue
        for name, row in zip(NAMES, event.rows, strict=False):
            could_move = row.grad != GradState.ZERO and row.lr != 0
            if row.ran == NOT_RUN and not row.changes and not with_idle:
                continue
            is_left_out = row.optimizer == "" and _takes_part(event)
            if is_left_out or (row.optimizer == event.optimizer and could_move):
                found[name] = found.get(name, False) or row.changes
    return found


def _buffers(batch: Batch) -> dict[str, bool]:
    """Return of each buffer that some training forward shows, whether it changes."""
    steps = [event for event in batch if isinstance(event, Step) and not event.fails]
    if steps and not _takes_part(steps[-1]):
        return {}
    found: dict[str, bool] = {}
    for event in batch:
        if isinstance(event, Forward) and event.grad_enabled:
            for name, change in zip(NAMES, event.changes, strict=False):
                found[name] = found.get(name, False) or change
    return found


def _reference(
    look: Callable[[Batch], dict[str, bool]], names: Sequence[str], batches: Sequence[Batch]
) -> list[bool]:
    found = []
    for batch in batches:
        judged = [change for name, change in look(batch).items() if name in names]
        if _is_training(batch) and judged:
            found.append(all(judged))
    return found


given_rows = st.lists(
    st.builds(
        Row,
        st.sampled_from([True, True, False]),
        st.sampled_from([FIRST, FIRST, SECOND, ""]),
        st.sampled_from([GradState.NULL, GradState.ZERO, GradState.NON_ZERO]),
        st.sampled_from([0.0, 0.1, 0.1]),
        st.sampled_from([0, 0, NOT_RUN]),
    ),
    min_size=1,
    max_size=3,
)
given_events = st.builds(
    Step, given_rows, st.sampled_from([FIRST, SECOND]), st.sampled_from([False, False, True])
) | st.builds(
    Forward, st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=3), st.booleans()
)
given_batches = st.lists(st.lists(given_events, min_size=1, max_size=4), max_size=6)
given_names = st.sets(st.sampled_from([*NAMES, "not in this run"]), min_size=1)


def _holds(rule: VarTypeParam, names: Sequence[str], windows: Sequence[Window]) -> list[bool]:
    params = (rule, ConstantParam(value=tuple(names)))
    return [holds for _, holds in labels(RELATION, params, windows)]


@given(given_batches, given_names)
def test_parameters_are_judged_as_the_formula_says(batches: list[Batch], names: set[str]) -> None:
    found = _holds(UPDATED, sorted(names), _windows(batches))
    assert found == _reference(_parameters, sorted(names), batches)


@given(given_batches, given_names)
def test_buffers_are_judged_as_the_formula_says(batches: list[Batch], names: set[str]) -> None:
    found = _holds(TRACKING, sorted(names), _windows(batches))
    assert found == _reference(_buffers, sorted(names), batches)


@given(st.lists(given_events, max_size=12), st.sets(st.integers(0, 12), max_size=6))
def test_a_run_may_be_cut_anywhere(events: list[Step | Forward], cut: set[int]) -> None:
    edges = [0, *sorted(position for position in cut if position < len(events)), len(events)]
    batches = [events[first:second] for first, second in pairwise(edges)]
    windows = told([_tell(event) for event in events], sorted(cut))
    assert _holds(UPDATED, NAMES, windows) == _reference(_parameters, NAMES, batches)
    assert _holds(TRACKING, NAMES, windows) == _reference(_buffers, NAMES, batches)


def test_the_place_is_the_last_step_of_the_window() -> None:
    other = Step([Row(optimizer=SECOND)], SECOND)
    (window,) = _windows([[Step([Row()]), other]])
    # Each step takes a begin, two frames and an end.
    params = (UPDATED, ConstantParam(value=("a",)))
    assert labels(RELATION, params, [window]) == [(5, True)]


def test_an_update_below_the_resolution_is_no_evidence() -> None:
    run = RunBuilder()
    parameters = run.parameters("a", shape=(4,))
    held = {"optimizer": FIRST, "lr": 1e-9, "grad": GradState.NON_ZERO, "dtype": "torch.float32"}
    for gradient in (1e-3, 1e6):
        with run.calling("torch.optim.SGD.step", object=FIRST):
            run.frame("begin", parameters, data=1, data_norm=2.0, grad_norm=gradient, **held)
            run.frame("end", parameters, data=1, data_norm=2.0, grad_norm=gradient, **held)
        expected = [] if gradient < 1 else [False]
        assert _holds(UPDATED, ["a"], [run.window()]) == expected


def test_what_was_not_observed_is_not_judged() -> None:
    run = RunBuilder()
    _tell(Step([Row(changes=False)]))(run)
    assert _holds(UPDATED, ["a"], [run.window(observed=False)]) == []
    _tell(Step([Row(changes=False)]))(run)
    assert _holds(UPDATED, ["a"], [run.window()]) == [False]


def test_variables_that_come_later_are_judged_too() -> None:
    run = RunBuilder()
    monitor = RELATION.monitor((UPDATED, ConstantParam(value=NAMES)))
    found = []
    for step in (Step([Row()]), Step([Row(), Row(changes=False)]), Step([Row()] * 3)):
        # The catalog grows as the run goes on.
        _tell(step)(run)
        found += monitor.observe(run.window()).holds.tolist()
    assert found == [True, False, True]


def test_modules_that_come_later_may_be_frozen_too() -> None:
    run = RunBuilder()
    monitor = RELATION.monitor((FIXED, ConstantParam(value=BUFFERS)))
    found = []
    for name in ("first", "second"):
        parameters = run.parameters(f"{name}.weight")
        buffers = run.parameters(f"{name}.mean", kind="buffer")
        with run.calling("__main__.Net.forward", object="__main__.Net#0"):
            run.frame("begin", buffers, data=1)
            run.frame("end", buffers, data=1 if name == "first" else 2)
        with run.calling("torch.optim.SGD.step", object=FIRST):
            run.frame("begin", parameters, requires_grad=False)
        found += monitor.observe(run.window()).holds.tolist()
    assert found == [True, False]


def test_a_buffer_is_no_parameter_of_that_name() -> None:
    (window,) = _windows([[Forward([False]), Step([Row()])]])
    assert _holds(UPDATED, ["a"], [window]) == [True]
    assert _holds(TRACKING, ["a"], [window]) == [False]


class Modules(NamedTuple):
    """A step of two modules with a buffer each: who is frozen, and whose buffer changes."""

    frozen: tuple[bool, bool]
    changes: tuple[bool, bool]


def _modules(steps: Sequence[Modules], *, shows: bool = True) -> list[Window]:
    run = RunBuilder()
    parameters = run.parameters("first.weight", "first.bias", "second.weight")
    buffers = run.parameters("first.mean", "second.mean", "without.mean", kind="buffer")
    windows = []
    for step in steps:
        with run.calling("__main__.Net.forward", object="__main__.Net#0"):
            run.frame("begin", buffers, data=1)
            run.frame("end", buffers, data=[2 if change else 1 for change in (*step.changes, 1)])
        first, second = step.frozen
        # One parameter that learns is enough.
        columns = {"requires_grad": [False, not first, not second]} if shows else {}
        with run.calling("torch.optim.SGD.step", object=FIRST):
            run.frame("begin", parameters, grad=GradState.NON_ZERO, **columns)
        windows.append(run.window())
    return windows


BUFFERS = ("first.mean", "second.mean", "without.mean")
both = st.tuples(st.booleans(), st.booleans())
module_steps = st.lists(st.builds(Modules, both, both), max_size=6)


@given(module_steps, st.sets(st.sampled_from(BUFFERS), min_size=1))
def test_buffers_of_frozen_modules_are_judged_as_the_formula_says(
    steps: list[Modules], names: set[str]
) -> None:
    expected = []
    for step in steps:
        judged = [
            not change
            for name, frozen, change in zip(BUFFERS, step.frozen, step.changes, strict=False)
            if frozen and name in names
        ]
        if judged:
            expected.append(all(judged))
    assert _holds(FIXED, sorted(names), _modules(steps)) == expected


def test_without_a_look_at_the_parameters_no_module_is_frozen() -> None:
    steps = [Modules((True, True), (True, True))]
    assert _holds(FIXED, BUFFERS, _modules(steps)) == [False]
    assert _holds(FIXED, BUFFERS, _modules(steps, shows=False)) == []


def _explained(rule: VarTypeParam, window: Window) -> Explanation:
    monitor = RELATION.monitor((rule, ConstantParam(value=(*NAMES, *BUFFERS))))
    examples = monitor.observe(window)
    assert examples.holds.tolist() == [False]
    return examples.explain(0)


@pytest.mark.parametrize(
    ("bad", "fact"),
    [
        (Row(changes=False, optimizer=""), "in no optimizer"),
        (Row(changes=False, grad=GradState.NULL), "gradient is None"),
    ],
    ids=["optimizer", "gradient"],
)
def test_parameters_that_stay_are_explained(bad: Row, fact: str) -> None:
    (window,) = _windows([[Step([Row(), bad, bad])]])
    explanation = _explained(UPDATED, window)
    assert explanation.message == (
        "2 of 3 parameters that learn in a healthy run were not updated by SGD.step"
    )
    assert explanation.cause is not None
    assert explanation.cause.fact == fact
    assert explanation.cause.subjects == ("b", "c")


def test_the_step_that_holds_the_parameter_is_asked() -> None:
    still = Row(changes=False, optimizer=FIRST, grad=GradState.NULL)
    other = [Row(optimizer=SECOND, grad=GradState.NON_ZERO)]
    (window,) = _windows([[Step(other, SECOND), Step([Row(optimizer=SECOND), still])]])
    explanation = _explained(UPDATED, window)
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("b",)


def test_buffers_that_stopped_are_explained() -> None:
    (window,) = _windows([[Forward([True, False]), Step([Row()])]])
    explanation = _explained(TRACKING, window)
    assert explanation.message == (
        "1 of 2 buffers that follow the data in a healthy run did not change"
    )
    assert explanation.cause is not None
    assert (explanation.cause.fact, explanation.cause.subjects) == ("in eval mode", ("b",))
    assert explanation.cause.text.startswith("`b` did not follow the data")


def test_buffers_of_frozen_modules_that_move_are_explained() -> None:
    (window,) = _modules([Modules((True, True), (True, False))])
    explanation = _explained(FIXED, window)
    assert explanation.message == "1 of 2 buffers in frozen parts of the model changed"
    assert explanation.cause is not None
    assert explanation.cause.fact == "frozen modules follow the data"
    assert explanation.cause.subjects == ("first.mean",)


def _proposed(windows: Sequence[Window]) -> list[Hypothesis]:
    proposer = RELATION.proposer()
    for window in windows:
        proposer.observe(window)
    return list(proposer.hypotheses())


def _names(windows: Sequence[Window]) -> dict[VarTypeParam, tuple[str, ...]]:
    found = {}
    for hypothesis in _proposed(windows):
        rule, names = hypothesis.params
        assert isinstance(rule, VarTypeParam)
        assert isinstance(names, ConstantParam)
        found[rule] = names.value
    return found


@given(given_batches)
def test_what_changed_in_every_window_is_proposed(batches: list[Batch]) -> None:
    training = [batch for batch in batches if _is_training(batch)]
    expected = {}
    for rule, look in ((UPDATED, _parameters), (TRACKING, _buffers)):
        seen = [look(batch) for batch in training]
        with_idle = [_parameters(batch, with_idle=True) for batch in training]
        names = []
        for name in NAMES:
            ran = [number for number, batch in enumerate(seen) if name in batch]
            idle = [n for n, batch in enumerate(with_idle) if name in batch and n not in ran]
            pauses = rule == UPDATED and any(n < ran[-1] for n in idle if ran)
            if ran and all(seen[n][name] for n in ran) and not pauses:
                names.append(name)
        if names:
            expected[rule] = tuple(names)
    assert _names(_windows(batches)) == expected


def test_what_ran_in_an_earlier_phase_is_proposed() -> None:
    ran, idle = Row(), Row()._replace(ran=NOT_RUN, changes=False)
    assert _names(_windows([[Step([ran, idle])], [Step([idle, ran])]])) == {UPDATED: ("a",)}
    again = [[Step([ran])], [Step([idle])], [Step([ran])]]
    assert _names(_windows(again)) == {}


@given(module_steps)
def test_buffers_that_stayed_whenever_frozen_are_proposed(steps: list[Modules]) -> None:
    expected = []
    for position, name in enumerate(BUFFERS[:2]):
        changes = [step.changes[position] for step in steps if step.frozen[position]]
        if changes and not any(changes):
            expected.append(name)
    assert _names(_modules(steps)).get(FIXED, ()) == tuple(expected)


def test_a_healthy_run_proposes_its_parameters() -> None:
    assert _names(training_run(3)) == {UPDATED: ("fc.bias", "fc.weight")}
    assert _names(training_run(3, updates=False)) == {}


def test_the_rule_names_up_to_three() -> None:
    def describe(rule: VarTypeParam, *names: str) -> str:
        return RELATION.describe((rule, ConstantParam(value=names)))

    change = "change in every training step"
    assert describe(UPDATED, "a", "b") == f"2 parameters (`a`, `b`) {change}"
    assert describe(TRACKING, "a", "b", "c", "d") == f"4 buffers (`a`, `b`, `c`, ...) {change}"
    assert describe(FIXED, "a", "b") == f"2 buffers (`a`, `b`) do not {change}"


@pytest.mark.parametrize(
    "rule",
    [
        replace(UPDATED, attr_name="grad"),
        replace(UPDATED, var_type="torch.nn.Module"),
        replace(UPDATED, post_value="unchanged"),
        replace(UPDATED, quantifier="some"),
    ],
    ids=str,
)
def test_another_change_is_refused(rule: VarTypeParam) -> None:
    with pytest.raises(InvariantError, match="speaks of the data of parameters or buffers"):
        RELATION.monitor((rule, ConstantParam(value=("a",))))


@pytest.mark.parametrize("names", ["a", None, 3, ("a", 3)], ids=str)
def test_what_is_no_list_of_names_is_refused(names: Any) -> None:
    with pytest.raises(InvariantError, match="needs a list of names, got"):
        RELATION.monitor((UPDATED, ConstantParam(value=names)))


def test_parameters_of_another_relation_are_refused() -> None:
    names = ConstantParam(value=("a",))
    strange: list[tuple[Param, ...]] = [
        (),
        (UPDATED,),
        (names, UPDATED),
        (APIParam(api_full_name="a"), names),
        (UPDATED, names, names),
    ]
    for params in strange:
        with pytest.raises(InvariantError, match="expects the parameters VarTypeParam and Const"):
            RELATION.monitor(params)


def test_a_file_keeps_what_was_proposed(tmp_path: Path) -> None:
    steps = _windows([[Forward([True] * 3), Step([Row()] * 3)]] * 3)
    frozen = _modules([Modules((True, False), (False, True))] * 3)
    written = [
        Invariant(
            relation=h.relation,
            params=h.params,
            severity=RELATION.severity(h.params),
            scope="universal",
            text_description=RELATION.describe(h.params),
        )
        for h in (*_proposed(steps), *_proposed(frozen))
    ]
    assert [invariant.params[0] for invariant in written] == [UPDATED, TRACKING, TRACKING, FIXED]
    dump_invariants(written, tmp_path / "rules.jsonl")
    read = load_invariants(tmp_path / "rules.jsonl", {RELATION.name})
    assert read == tuple(written)
    for invariant, windows in zip(read, (steps, steps, frozen, frozen), strict=True):
        assert [h for _, h in labels(RELATION, invariant.params, windows)] == [True] * 3
