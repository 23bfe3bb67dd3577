"""The state that variables have when a call begins, against naive references."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NOT_RUN, RUN_WITHOUT_GRADIENTS, Window
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
from traincheck_plugin.relations.var_state import (
    ACCOUNTED,
    ACCUMULATED,
    APART,
    BESIDE_FROZEN,
    FINITE,
    LEARNING,
    OPTIMIZED,
    PATIENT,
    REACHED,
    RECORDED,
    SOME_LEARNING,
    SOME_TRAIN_MODE,
    STATES,
    THAWED,
    TRAIN_MODE,
    UNLIKE,
    USED,
    WHOLE,
    WIDE,
    WOVEN,
    VarStateRelation,
)
from traincheck_plugin.vocabulary import GradState

RELATION = VarStateRelation()
STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
BACKWARD = APIParam(api_full_name="torch.Tensor.backward", role="backward")
FIRST, SECOND = "torch.optim.SGD#0", "torch.optim.SGD#1"

COLUMNS = ("requires_grad", "in_model", "optimizer", "lr", "grad", "ran", "dtype", "alike")
FLOAT = "torch.float32"
# What a row of a frame is.
Row = tuple[bool, bool, str, float, GradState, int, str, bool]
rows = st.lists(
    st.tuples(
        st.booleans(),
        st.booleans(),
        st.sampled_from([FIRST, SECOND, ""]),
        st.sampled_from([0.0, 0.1]),
        st.sampled_from(list(GradState)),
        st.sampled_from([RUN_WITHOUT_GRADIENTS, NOT_RUN, 0, 1]),
        st.sampled_from(["torch.float32", "torch.bfloat16"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)
# A step is the optimizer that is called and the rows that it meets.
steps = st.lists(st.tuples(st.sampled_from([FIRST, SECOND]), rows), max_size=8)
cuts = st.sets(st.integers(0, 8), max_size=4)


def _step(target: str, met: Sequence[Row], *, led: bool = True) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        if led:
            run.call("torch.Tensor.backward")
        parameters = run.parameters(*(f"p{i}" for i in range(len(met))))
        # The first optimizer has two groups.
        run.parameters("0.lr", "1.lr", kind="group", owner=FIRST)
        columns = {name: [row[i] for row in met] for i, name in enumerate(COLUMNS)}
        # Both are told of the same steps.
        columns["shared"] = columns["alike"]
        with run.calling("torch.optim.SGD.step", object=target):
            run.frame("begin", parameters, **columns)
            # What is true at the end is another rule's business.
            run.frame("end", parameters, **(columns | {"grad": GradState.NON_FINITE, "lr": 0.0}))

    return tell


MEETS: dict[VarTypeParam, Callable[[Row], bool]] = {
    OPTIMIZED: lambda row: row[2] != "",
    LEARNING: lambda row: row[3] != 0,
    FINITE: lambda row: row[4] != GradState.NON_FINITE,
    SOME_LEARNING: lambda row: row[3] != 0,
    USED: lambda row: row[1] or row[4] != GradState.NULL,
    ACCOUNTED: lambda row: row[4] == GradState.NULL or row[1] or row[2] != "",
    WHOLE: lambda row: row[2] != "",
    BESIDE_FROZEN: lambda row: row[2] != "",
    THAWED: lambda row: row[2] != "",
    WOVEN: lambda row: row[2] != "",
    REACHED: lambda row: row[4] != GradState.NULL,
    RECORDED: lambda row: row[5] != RUN_WITHOUT_GRADIENTS,
    WIDE: lambda row: row[6] == "torch.float32",
    UNLIKE: lambda row: not row[7],
    APART: lambda row: not row[7],
}
"""Which rows are as a rule about steps wants them."""

HOLDING = (LEARNING, FINITE, SOME_LEARNING, USED, REACHED, RECORDED, WIDE, UNLIKE, APART)
"""The rules that speak of what the optimizer holds."""


def _speaks_of(rule: VarTypeParam, target: str, met: Sequence[Row], frozen: set[int]) -> list[Row]:
    """Return the rows of a step that a rule speaks of; *frozen* are rows that once were."""
    ran = [row[5] for row in met if row[0] and row[2] == target and row[5] >= 0]
    conditions = [
        lambda at, row: rule not in HOLDING or row[2] == target,
        lambda at, row: rule not in (SOME_LEARNING, REACHED, RECORDED, UNLIKE, APART) or row[0],
        lambda at, row: (
            rule not in (OPTIMIZED, WHOLE, THAWED, BESIDE_FROZEN, WOVEN) or (row[0] and row[1])
        ),
        lambda at, row: rule != OPTIMIZED or any(o[2] or o[4] != GradState.NULL for o in met),
        lambda at, row: rule not in (WHOLE, THAWED, UNLIKE, APART) or row[4] != GradState.NULL,
        lambda at, row: rule != UNLIKE or (row[3] != 0 and row[6] == FLOAT),
        lambda at, row: rule != THAWED or at in frozen,
        lambda at, row: rule != BESIDE_FROZEN or (_gets(row) and _is_meant(met)),
        lambda at, row: rule != WOVEN or _is_woven(met, row),
        # The rows are parameters of one module.
        lambda at, row: rule != WHOLE or any(other[2] for other in met),
        lambda at, row: rule != REACHED or (row[5] >= 0 and row[5] == min(ran)),
    ]
    return [row for at, row in enumerate(met) if all(c(at, row) for c in conditions)]


def _gets(row: Row) -> bool:
    """Return whether the module of a row ran, and it has a gradient."""
    return row[4] != GradState.NULL and row[5] >= 0


def _is_woven(met: Sequence[Row], row: Row) -> bool:
    """Return whether a row is among those that the groups of the first optimizer are made of.

    Each row is a part of the model for itself.
    """
    learning = [other for other in met if other[0] and _gets(other)]
    held = [other for other in learning if other[2] == FIRST]
    is_majority = 2 * len(held) > len(learning)
    return row in learning and is_majority and (row[2] == FIRST or len(held) > 1)


def _is_meant(met: Sequence[Row]) -> bool:
    """Return whether what is frozen shows that the rest is meant to learn; all are of one size."""
    num_frozen = sum(not row[0] for row in met)
    return any(row[2] and (not row[0] or num_frozen > len(met) - num_frozen) for row in met)


def _reference(rule: VarTypeParam, run: Sequence[tuple[str, list[Row]]]) -> list[bool]:
    found = []
    previous: dict[str, bool] = {}
    frozen: set[int] = set()
    for target, met in run:
        subject = _speaks_of(rule, target, met, frozen)
        frozen |= {at for at, row in enumerate(met) if not row[0]}
        if not subject:
            continue
        quantifier = all if rule.quantifier == "every" else any
        held = quantifier(MEETS[rule](row) for row in subject)
        # What alternates is excused unless the step before failed, too.
        if held or rule not in PATIENT or not previous.get(target, True):
            found.append(held)
        previous[target] = held
    return found


@given(st.sampled_from(STATES["step"]), steps, cuts)
def test_steps_are_judged_as_the_formula_says(
    rule: VarTypeParam, run: list[tuple[str, list[Row]]], cut: set[int]
) -> None:
    windows = told([_step(*step) for step in run], sorted(cut))
    assert [h for _, h in labels(RELATION, (STEP, rule), windows)] == _reference(rule, run)


# A backward meets the training flag of each module and the gradient of each parameter.
backwards = st.lists(
    st.tuples(
        st.lists(st.booleans(), max_size=3),
        st.lists(st.sampled_from(list(GradState)), max_size=3),
    ),
    max_size=8,
)


def _backward(flags: Sequence[bool], grads: Sequence[GradState]) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        modules = run.parameters(*(f"m{i}" for i in range(len(flags))), kind="module")
        parameters = run.parameters(*(f"p{i}" for i in range(len(grads))))
        with run.calling("torch.Tensor.backward"):
            run.frame("begin", modules, value=list(flags))
            run.frame("begin", parameters, grad=list(grads))
            # Something of the same model learns.
            run.frame("begin", run.parameters("held"), optimizer=FIRST, requires_grad=True)
            run.frame("end", parameters, grad=GradState.NON_ZERO)

    return tell


@given(backwards, cuts)
def test_backwards_are_judged_as_the_formula_says(
    run: list[tuple[list[bool], list[GradState]]], cut: set[int]
) -> None:
    windows = told([_backward(*backward) for backward in run], sorted(cut))
    found = [h for _, h in labels(RELATION, (BACKWARD, TRAIN_MODE), windows)]
    assert found == [all(flags) for flags, _ in run if flags]
    found = [h for _, h in labels(RELATION, (BACKWARD, ACCUMULATED), windows)]
    assert found == [any(g >= GradState.NON_ZERO for g in grads) for _, grads in run if grads]


GOOD: Row = (True, True, FIRST, 0.1, GradState.NON_ZERO, 0, FLOAT, False)
STILL: Row = (True, True, FIRST, 0.0, GradState.NON_ZERO, 0, FLOAT, False)


def test_the_place_is_the_call() -> None:
    windows = told([_backward([True], []), _step(FIRST, [GOOD])], [])
    # The backward takes a begin, four frames and an end, that which leads to the step two.
    assert labels(RELATION, (STEP, FINITE), windows) == [(9, True)]


@pytest.mark.parametrize("rule", [LEARNING, SOME_LEARNING])
def test_a_schedule_may_end_at_0_a_little_before_the_training(rule: VarTypeParam) -> None:
    run = [*[_step(FIRST, [GOOD])] * 30, *[_step(FIRST, [STILL])] * 5]
    for cuts in ([], [32], list(range(1, 35))):
        found = [h for _, h in labels(RELATION, (STEP, rule), told(run, cuts))]
        assert found == [True] * 30 + [False] * 2
    # A rate that comes back.
    restarts = [*run[:33], _step(FIRST, [GOOD]), *run[30:33]]
    assert all(h for _, h in labels(RELATION, (STEP, rule), told(restarts, [5])))


def test_a_learning_rate_may_be_0_for_one_step_of_each_optimizer() -> None:
    other = (True, True, SECOND, 0.0, GradState.NON_ZERO, 0, FLOAT, False)
    run = [
        _step(FIRST, [STILL]),
        _step(SECOND, [other]),
        _step(FIRST, [STILL]),
        _step(FIRST, [GOOD]),
        _step(FIRST, [STILL]),
    ]
    found = [h for _, h in labels(RELATION, (STEP, LEARNING), told(run, [1, 2, 3, 4]))]
    assert found == [False, True]


def test_a_stretch_that_was_not_observed_excuses_nothing() -> None:
    # With sparse sampling each observed step stands alone.
    run = RunBuilder()
    windows = []
    for _ in range(2):
        _step(FIRST, [STILL])(run)
        windows += [run.window(), run.window(observed=False)]
    assert [h for _, h in labels(RELATION, (STEP, LEARNING), windows)] == [False]


def test_a_frame_that_cannot_tell_is_no_example() -> None:
    run = RunBuilder()
    parameters = run.parameters("a")
    with run.calling("torch.optim.SGD.step", object=FIRST):
        run.frame("begin", parameters, grad=GradState.NON_FINITE)
    with run.calling("torch.optim.SGD.step"):
        run.frame("begin", parameters, grad=GradState.NON_FINITE, optimizer="")
    with run.calling("torch.optim.SGD.step", object=FIRST):
        run.frame("begin", parameters, optimizer=FIRST, requires_grad=True, in_model=True)
        run.frame("end", parameters, optimizer=FIRST, grad=GradState.NON_FINITE)
    windows = [run.window()]
    for rule in (FINITE, OPTIMIZED, WHOLE):
        assert labels(RELATION, (STEP, rule), windows) == []


def test_a_parameter_that_another_phase_needs_may_be_left_out() -> None:
    later: Row = (True, True, "", 0.1, GradState.NULL, 0, FLOAT, False)
    windows = told([_step(FIRST, [GOOD, later])], [])
    assert [h for _, h in labels(RELATION, (STEP, WHOLE), windows)] == [True]


def _explained(params: tuple[Param, ...], *run: Callable[[RunBuilder], object]) -> Explanation:
    monitor = RELATION.monitor(params)
    (window,) = told(run, [])
    examples = monitor.observe(window)
    return examples.explain(int(np.flatnonzero(~examples.holds)[0]))


@pytest.mark.parametrize(
    ("rule", "bad", "message", "fact"),
    [
        (
            OPTIMIZED,
            (True, True, "", 0.1, GradState.NON_ZERO, 0, FLOAT, False),
            "`p1` requires gradients and is in no optimizer when SGD.step runs",
            "in no optimizer",
        ),
        (
            LEARNING,
            STILL,
            "the learning rate of 1 of 2 parameters that SGD.step holds is 0",
            "learning rate is 0",
        ),
        (
            FINITE,
            (True, True, FIRST, 0.1, GradState.NON_FINITE, 0, FLOAT, False),
            "the gradients of 1 of 2 parameters are NaN or infinite when SGD.step runs",
            "gradient is not finite",
        ),
        (
            USED,
            (True, False, FIRST, 0.1, GradState.NULL, NOT_RUN, FLOAT, False),
            "1 of 2 parameters that SGD.step holds are in no model that ran and get no gradient",
            "in no model that ran",
        ),
        (
            ACCOUNTED,
            (True, False, "", 0.1, GradState.NON_ZERO, 1, FLOAT, False),
            "`p1` gets gradients, is in no optimizer, and not part of the model that ran",
            "in no optimizer",
        ),
        (
            WHOLE,
            (True, True, "", 0.1, GradState.NON_ZERO, 0, FLOAT, False),
            "`p1` gets gradients and is in no optimizer, unlike others of the same modules",
            "in no optimizer",
        ),
        (
            RECORDED,
            (True, True, FIRST, 0.1, GradState.NULL, RUN_WITHOUT_GRADIENTS, FLOAT, False),
            "1 of 2 parameters that SGD.step trains belong to modules that ran only without "
            "gradients",
            "ran without gradients",
        ),
    ],
    ids=["optimized", "learning", "finite", "used", "accounted", "whole", "recorded"],
)
def test_the_explanation_of_a_step_names_the_parameter(
    rule: VarTypeParam, bad: Row, message: str, fact: str
) -> None:
    # Twice, since some are excused once.
    explanation = _explained((STEP, rule), *[_step(FIRST, [GOOD, bad])] * 2)
    assert explanation.message == message
    assert explanation.cause is not None
    assert explanation.cause.fact == fact
    assert explanation.cause.subjects == ("p1",)
    assert "`p1`" in explanation.cause.text


def test_a_first_module_without_gradients_is_told() -> None:
    detached: Row = (True, True, FIRST, 0.1, GradState.NULL, 0, FLOAT, False)
    later: Row = (True, True, FIRST, 0.1, GradState.NON_ZERO, 1, FLOAT, False)
    explanation = _explained((STEP, REACHED), *[_step(FIRST, [later, detached])] * 2)
    assert explanation.message == (
        "backward does not reach the first module that SGD.step trains: `p1` has no gradient"
    )
    assert explanation.cause is not None
    assert explanation.cause.fact == "gradient is None"


@pytest.mark.parametrize("rule", [REACHED, RECORDED])
def test_gradients_that_no_backward_computed_reach_what_they_reach(rule: VarTypeParam) -> None:
    row: Row = (True, True, FIRST, 0.1, GradState.NULL, 0, FLOAT, False)
    if rule == RECORDED:
        row = (True, True, FIRST, 0.1, GradState.NON_ZERO, RUN_WITHOUT_GRADIENTS, FLOAT, False)
    for led in (True, False):
        windows = told([_step(FIRST, [row], led=led)] * 3, [1])
        found = [h for _, h in labels(RELATION, (STEP, rule), windows)]
        assert found == ([False, False] if led else [])


def test_one_that_is_unfrozen_is_to_be_in_an_optimizer() -> None:
    frozen: Row = (False, True, "", 0.1, GradState.NULL, NOT_RUN, FLOAT, False)
    thawed: Row = (True, True, "", 0.1, GradState.NON_ZERO, 1, FLOAT, False)
    explanation = _explained(
        (STEP, THAWED), _step(FIRST, [GOOD, frozen]), _step(FIRST, [GOOD, thawed])
    )
    assert explanation.message == (
        "`p1` is no longer frozen, and in no optimizer when SGD.step runs"
    )


def test_what_learns_beside_frozen_parameters_is_to_be_in_an_optimizer() -> None:
    frozen: Row = (False, True, FIRST, 0.1, GradState.NULL, 0, FLOAT, False)
    added: Row = (True, True, "", 0.1, GradState.NON_ZERO, 1, FLOAT, False)
    # Where a phase begins, gradients may be left from the last one.
    explanation = _explained((STEP, BESIDE_FROZEN), *[_step(FIRST, [GOOD, frozen, added])] * 2)
    assert explanation.message == (
        "`p2` gets gradients and is in no optimizer, in a model that is frozen in part"
    )


def test_what_learns_in_a_model_that_is_frozen_for_the_greater_part_is_to_be_in_one() -> None:
    frozen: Row = (False, True, "", 0.1, GradState.NULL, 0, FLOAT, False)
    added: Row = (True, True, "", 0.1, GradState.NON_ZERO, 1, FLOAT, False)
    rule, few, many = (STEP, BESIDE_FROZEN), [GOOD, frozen, added], [GOOD, *[frozen] * 3, added]
    assert not labels(RELATION, rule, told([_step(FIRST, few)], []))
    assert "`p4` gets gradients" in _explained(rule, *[_step(FIRST, many)] * 2).message


def test_groups_that_leave_a_parameter_out() -> None:
    left_out: Row = (True, True, "", 0.1, GradState.NON_ZERO, 0, FLOAT, False)
    rule = (STEP, WOVEN)
    explanation = _explained(rule, *[_step(FIRST, [GOOD, GOOD, left_out])] * 2)
    assert explanation.message == (
        "`p2` gets gradients and is in no group of an optimizer that trains most of the model"
    )
    assert explanation.cause is not None
    assert explanation.cause.fact == "in no optimizer"
    # One group is that of a part, as a head is; so are groups of the lesser part of a model.
    other: Row = (True, True, SECOND, 0.1, GradState.NON_ZERO, 0, FLOAT, False)
    left_over = (*left_out[:5], NOT_RUN, FLOAT, False)
    for met in (
        [other, other, left_out],
        [GOOD, left_out],
        [GOOD, GOOD, *[left_out] * 2],
        [GOOD, GOOD, left_over],
    ):
        assert all(holds for _, holds in labels(RELATION, rule, told([_step(FIRST, met)], [])))


def _backward_of(flags: Sequence[bool], owner: str) -> Callable[[RunBuilder], object]:
    """A backward that meets modules of one model, and a parameter of *owner* that learns."""

    def tell(run: RunBuilder) -> None:
        modules = run.parameters(*(f"m{i}" for i in range(len(flags))), kind="module")
        parameters = run.parameters("p", owner=owner)
        with run.calling("torch.Tensor.backward"):
            run.frame("begin", modules, value=list(flags))
            run.frame("begin", parameters, optimizer=FIRST, requires_grad=True)

    return tell


@given(
    st.lists(st.none() | st.lists(st.booleans(), min_size=1, max_size=3), max_size=10),
    st.sets(st.integers(1, 9)),
)
def test_some_module_of_what_is_trained_is_in_training_mode(
    run: list[list[bool] | None], cuts: set[int]
) -> None:
    """A list is a backward that meets modules in these modes, None is a step."""
    # A window ends with a step.
    cuts = {cut for cut in cuts if cut < len(run) and run[cut - 1] is None}
    expected, met = [], []
    for event in run:
        if event is not None:
            met.append(any(event))
        elif met:
            expected.append(any(met))
            met = []
    rule = (BACKWARD, SOME_TRAIN_MODE)
    for owner in ("__main__.Net#0", "__main__.Other#0"):
        events = [
            _step(FIRST, [GOOD]) if flags is None else _backward_of(flags, owner) for flags in run
        ]
        found = [h for _, h in labels(RELATION, rule, told(events, sorted(cuts)))]
        # The other may be a teacher, say.
        assert found == (expected if owner == "__main__.Net#0" else [])


def test_several_parameters_in_no_optimizer() -> None:
    left: Row = (True, True, "", 0.1, GradState.NON_ZERO, 0, FLOAT, False)
    explanation = _explained((STEP, OPTIMIZED), _step(FIRST, [GOOD, left, left]))
    assert explanation.message == (
        "`p1`, `p2` require gradients and are in no optimizer when SGD.step runs"
    )
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("p1", "p2")
    assert explanation.cause.text.startswith("`p1`, `p2` were not given to an optimizer")


def test_modules_in_eval_mode_are_named_or_counted() -> None:
    explanation = _explained((BACKWARD, TRAIN_MODE), _backward([True, False], []))
    assert explanation.message == (
        "1 of 2 modules of what is trained are in eval mode when Tensor.backward runs"
    )
    assert explanation.cause is not None
    assert (explanation.cause.fact, explanation.cause.subjects) == ("in eval mode", ("m1",))
    assert explanation.cause.text.startswith("`m1` is in eval mode while training")
    cause = _explained((BACKWARD, TRAIN_MODE), _backward([False] * 4, [])).cause
    assert cause is not None
    assert cause.text.startswith("4 modules (`m0`, `m1`, ...) are in eval mode")
    assert cause.subjects == ("m0", "m1", "m2", "m3")


def test_gradients_that_were_cleared_between_micro_batches_are_told() -> None:
    explanation = _explained((BACKWARD, ACCUMULATED), _backward([], [GradState.ZERO]))
    assert explanation.message == "no gradients were left to add to when Tensor.backward ran"
    assert explanation.cause is not None
    assert explanation.cause.fact == "accumulated gradients were cleared"
    assert explanation.cause.subjects == ("Tensor.backward",)


def test_a_rule_that_is_not_proposed_is_explained_too() -> None:
    rule = VarTypeParam(var_type="torch.nn.Module", attr_name="value", pre_value=False)
    assert RELATION.describe((BACKWARD, rule)) == (
        "value of some torch.nn.Module is False when Tensor.backward runs"
    )
    explanation = _explained((BACKWARD, rule), _backward([True], []))
    assert explanation.message == "`m0` did not have value False at Tensor.backward"


def _proposed(windows: Sequence[Window]) -> list[Hypothesis]:
    proposer = RELATION.proposer()
    for window in windows:
        proposer.observe(window)
    return list(proposer.hypotheses())


@given(steps, cuts)
def test_what_held_once_in_a_step_is_proposed(
    run: list[tuple[str, list[Row]]], cut: set[int]
) -> None:
    proposed = {h.params for h in _proposed(told([_step(*step) for step in run], sorted(cut)))}
    for rule in STATES["step"]:
        assert ((STEP, rule) in proposed) == any(_reference(rule, run))
    assert proposed <= {(STEP, rule) for rule in STATES["step"]}


@given(backwards, cuts)
def test_what_held_once_in_a_backward_is_proposed(
    run: list[tuple[list[bool], list[GradState]]], cut: set[int]
) -> None:
    windows = told([_backward(*backward) for backward in run], sorted(cut))
    accumulates = any(g >= GradState.NON_ZERO for _, grads in run for g in grads)
    trains = any(flags and all(flags) for flags, _ in run)
    assert {h.params for h in _proposed(windows)} == {
        (BACKWARD, rule)
        for rule, holds in (
            (TRAIN_MODE, trains),
            (ACCUMULATED, accumulates),
        )
        if holds
    }


def test_each_is_proposed_once() -> None:
    frozen: Row = (False, *GOOD[1:])
    windows = told([_step(FIRST, [frozen, GOOD])] + [_step(FIRST, [GOOD, GOOD])] * 3, [1, 2])
    assert len(_proposed(windows)) == len(STATES["step"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (replace(FINITE, var_type="numpy.ndarray"), "expected a var_type that is one of"),
        (replace(FINITE, pre_value="any"), "needs a pre_value and no post_value"),
        (replace(FINITE, post_value="changed"), "needs a pre_value and no post_value"),
        (ConstantParam(value=1), "VarStateRelation expects the parameters APIParam and VarType"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(InvariantError, match=message):
        RELATION.monitor((STEP, rule))


def test_parameters_of_another_relation_are_refused() -> None:
    for params in ((), (STEP,), (STEP, BACKWARD), (FINITE, STEP), (STEP, FINITE, FINITE)):
        with pytest.raises(InvariantError, match="VarStateRelation expects the parameters"):
            RELATION.monitor(params)


def test_a_value_that_the_attribute_cannot_have_is_refused() -> None:
    rule = replace(FINITE, pre_value="huge")
    with pytest.raises(InvariantError, match="expected a value that 'grad' can have, got 'huge'"):
        labels(RELATION, (STEP, rule), told([_step(FIRST, [GOOD])], []))


def test_a_file_keeps_what_was_proposed(tmp_path: Path) -> None:
    def backward(run: RunBuilder) -> None:
        modules, parameters = run.parameters("m", kind="module"), run.parameters("p0")
        with run.calling("torch.Tensor.backward"):
            run.frame("begin", modules, value=True)
            columns = dict(zip(COLUMNS, GOOD, strict=True))
            run.frame("begin", parameters, **columns)

    frozen: Row = (False, *GOOD[1:])
    told_run = [backward, _step(FIRST, [GOOD, frozen])]
    windows = told([_step(FIRST, [frozen]), *told_run * 3], [1, 3, 5])
    written = [
        Invariant(
            relation=h.relation,
            params=h.params,
            severity=RELATION.severity(h.params),
            scope="universal",
            text_description=RELATION.describe(h.params),
        )
        for h in _proposed(windows)
    ]
    rules = [rule for states in STATES.values() for rule in states]
    assert {invariant.params[1] for invariant in written} == set(rules)
    assert len({invariant.text_description for invariant in written}) == len(rules)
    dump_invariants(written, tmp_path / "rules.jsonl")
    read = load_invariants(tmp_path / "rules.jsonl", {RELATION.name})
    assert read == tuple(written)
    for invariant in read:
        # Read from a file it is the rule that was proposed, with its sentences.
        assert RELATION.describe(invariant.params) == invariant.text_description
        found = [h for _, h in labels(RELATION, invariant.params, windows)]
        assert len(found) >= 3
        assert all(found)


def test_only_gradients_that_are_not_finite_are_critical() -> None:
    for role, states in STATES.items():
        for rule in states:
            params = (APIParam(api_full_name="a.b", role=role), rule)
            assert (RELATION.severity(params) == "critical") == (rule == FINITE)


def test_parameters_in_half_precision_are_told() -> None:
    run = RunBuilder()
    parameters = run.parameters("a", "b")
    for dtype in ("torch.float32", "torch.bfloat16"):
        with run.calling("torch.optim.SGD.step", object=FIRST):
            run.frame("begin", parameters, optimizer=FIRST, dtype=["torch.float64", dtype])
    window = run.window()
    assert [held for _, held in labels(RELATION, (STEP, WIDE), [window])] == [True, False]
    explanation = RELATION.monitor((STEP, WIDE)).observe(window).explain(1)
    assert explanation.message == "1 of 2 parameters that SGD.step holds are in half precision"
    assert explanation.cause is not None
    assert "`b` is torch.bfloat16: the model was cast" in explanation.cause.text


def test_weights_whose_rows_are_alike_are_told() -> None:
    run = RunBuilder()
    parameters = run.parameters("a", "b", "c", "d")
    shown = {
        "optimizer": [FIRST, FIRST, FIRST, ""],
        "requires_grad": True,
        "lr": [0.1, 0.0, 0.1, math.nan],
        "dtype": FLOAT,
        "grad": [GradState.NON_ZERO, GradState.ZERO, GradState.NULL, GradState.NON_ZERO],
    }
    for alike in ([False] * 4, [False, True, True, True], [True] * 4):
        with run.calling("torch.optim.SGD.step", object=FIRST):
            run.frame("begin", parameters, alike=alike, **shown)
    # It is told once, and of no other step.
    with run.calling("torch.optim.SGD.step", object=FIRST):
        run.frame("begin", parameters, **shown)
    # Tokens that are averaged may be the same.
    tokens = run.parameters("tokens", module_type="__main__.Prompted")
    with run.calling("torch.optim.SGD.step", object=FIRST):
        row = {name: value for name, value in shown.items() if isinstance(value, (bool, str))}
        run.frame(
            "begin", tokens, alike=True, optimizer=FIRST, lr=0.1, grad=GradState.NON_ZERO, **row
        )
    window = run.window()
    assert [held for _, held in labels(RELATION, (STEP, UNLIKE), [window])] == [True, True, False]
    explanation = RELATION.monitor((STEP, UNLIKE)).observe(window).explain(2)
    assert explanation.message == "all rows of `a` are still the same when SGD.step runs"
    assert explanation.cause is not None
    assert "began with the same weights" in explanation.cause.text


def test_parameters_that_are_one_in_memory_are_told() -> None:
    run = RunBuilder()
    parameters = run.parameters("a", "b", "c")
    shown = {"optimizer": FIRST, "requires_grad": True, "grad": GradState.NON_ZERO}
    for shared in ([False] * 3, [True, False, True]):
        with run.calling("torch.optim.SGD.step", object=FIRST):
            run.frame("begin", parameters, shared=shared, **shown)
    window = run.window()
    assert [held for _, held in labels(RELATION, (STEP, APART), [window])] == [True, False]
    explanation = RELATION.monitor((STEP, APART)).observe(window).explain(1)
    assert explanation.message == "`a`, `c` are in the same memory when SGD.step runs"
    assert explanation.cause is not None
    assert "tied by their `.data`" in explanation.cause.text
