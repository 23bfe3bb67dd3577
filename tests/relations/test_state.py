"""What calls do to variables, against naive references, and the causes that are named."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, training_run
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, VarTypeParam
from traincheck_plugin.relations.api_contain import APIContainRelation
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.moments import inert
from traincheck_plugin.stacks import join
from traincheck_plugin.vocabulary import GradState

RELATION = APIContainRelation()
STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
CLEAR = APIParam(api_full_name="torch.optim.Optimizer.zero_grad", role="zero_grad")
CYCLE = APIParam(api_full_name="torch.optim.Optimizer.step", role="step", span="cycle")
HELD = (("held", True),)


def _param(attribute: str, pre: Any = "any", post: Any = "any", **options: Any) -> VarTypeParam:
    return VarTypeParam(
        var_type="torch.nn.Parameter",
        attr_name=attribute,
        pre_value=pre,
        post_value=post,
        **options,
    )


states = st.lists(
    st.tuples(st.sampled_from(list(GradState)), st.sampled_from(list(GradState)), st.booleans()),
    min_size=1,
    max_size=5,
)


def _clearing(rows: list[tuple[GradState, GradState, bool]]) -> Window:
    run = RunBuilder()
    parameters = run.parameters(*(f"p{i}" for i in range(len(rows))))
    owners = ["torch.optim.Adam#0" if held else "" for _, _, held in rows]
    with run.calling("torch.optim.Adam.zero_grad", object="torch.optim.Adam#0"):
        run.frame("begin", parameters, grad=[b for b, _, _ in rows], optimizer=owners)
        run.frame("end", parameters, grad=[a for _, a, _ in rows], optimizer=owners)
    return run.window()


@given(states)
def test_some_variable_changes_as_the_formula_says(
    rows: list[tuple[GradState, GradState, bool]],
) -> None:
    param = _param("grad", "non_zero", None, where=HELD)
    found = [h for _, h in labels(RELATION, (CLEAR, param), [_clearing(rows)])]
    held = [(before, after) for before, after, is_held in rows if is_held]
    did = any(b >= GradState.NON_ZERO and a <= GradState.ZERO for b, a in held)
    # Where nothing is there to clear, nothing is amiss.
    assert found == ([did] if any(b >= GradState.NON_ZERO for b, _ in held) else [])


@given(states)
def test_every_variable_changes_as_the_formula_says(
    rows: list[tuple[GradState, GradState, bool]],
) -> None:
    param = _param("grad", "non_zero", None, quantifier="every", where=HELD)
    found = [h for _, h in labels(RELATION, (CLEAR, param), [_clearing(rows)])]
    held = [after for before, after, is_held in rows if is_held and before >= GradState.NON_ZERO]
    assert found == ([all(a <= GradState.ZERO for a in held)] if held else [])


def _step(**columns: Any) -> Window:
    run = RunBuilder()
    parameters = run.parameters("a", "b", shape=(4,))
    values: dict[str, Any] = {
        "grad": GradState.NON_ZERO,
        "grad_norm": 1.0,
        "data_norm": 2.0,
        "dtype": "torch.float32",
        "requires_grad": True,
        "in_model": True,
        "lr": 0.1,
        "optimizer": "torch.optim.SGD#0",
    }
    after = columns.pop("after", [1, 2])
    run.at(stage="training")
    run.call("torch.Tensor.backward")
    with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
        run.frame("begin", parameters, data=[1, 2], **(values | columns))
        run.frame("end", parameters, data=after, **(values | columns))
    return run.window()


SOME = _param("data", post="changed", where=HELD)
EVERY = _param("data", post="changed", quantifier="every", where=(*HELD, ("grad", "non_zero")))


@pytest.mark.parametrize(
    ("columns", "some", "every"),
    [
        ({"after": [3, 4]}, [True], [True]),
        ({"after": [3, 2]}, [True], [False]),
        ({}, [False], [False]),
        # An update that cannot be seen is no evidence.
        ({"lr": 0.0}, [], []),
        ({"grad": GradState.ZERO}, [], []),
        ({"after": [3, 2], "grad": [2, 1]}, [True], [True]),
        ({"lr": 1e-9, "grad_norm": 1e-3}, [], []),
        # Without any gradient nothing changes, and that is the bug.
        ({"grad": GradState.NULL}, [False], []),
        ({"optimizer": ""}, [], []),
    ],
)
def test_a_step_is_judged_by_what_it_could_change(
    columns: dict[str, Any], some: list[bool], every: list[bool]
) -> None:
    window = _step(**columns)
    assert [h for _, h in labels(RELATION, (STEP, SOME), [window])] == some
    # The first failure in a row is none: an optimizer may leave a parameter out once.
    twice = every if all(every) else []
    assert [h for _, h in labels(RELATION, (STEP, EVERY), [window])] == twice
    windows = [_step(**columns), _step(**columns)]
    assert [h for _, h in labels(RELATION, (STEP, EVERY), windows)] == twice + every


def _searching(numbers: list[int], after: list[int], run: RunBuilder | None = None) -> Window:
    """Tell steps with so many backward passes inside each, which change `a` by what *after* has."""
    run = run or RunBuilder()
    parameters = run.parameters("a", shape=(4,))
    held = {"optimizer": "torch.optim.LBFGS#0", "lr": 1.0, "grad": GradState.NON_ZERO}
    for number, value in zip(numbers, after, strict=True):
        if not number:
            run.call("torch.Tensor.backward")
        with run.calling("torch.optim.LBFGS.step", object="torch.optim.LBFGS#0"):
            for _ in range(number):
                run.call("torch.Tensor.backward")
            run.frame("begin", parameters, data=[1], **held)
            run.frame("end", parameters, data=[value], **held)
    return run.window()


@pytest.mark.parametrize("param", [SOME, EVERY], ids=["some", "every"])
@pytest.mark.parametrize(
    ("numbers", "after", "expected"),
    [
        ([0], [1], [False]),
        ([1], [1], [False]),
        ([2], [1], []),
        ([2, 2], [1, 3], [True]),
        # Once seen to search, it may stay with a single backward too.
        ([3, 1, 1], [3, 1, 3], [True, True]),
        ([1, 3, 1], [1, 1, 1], [False]),
    ],
)
def test_an_optimizer_that_searches_may_stay(
    param: VarTypeParam, numbers: list[int], after: list[int], expected: list[bool]
) -> None:
    if param is EVERY:
        # The first failure in a row is none.
        expected = [h for last, h in pairwise([True, *expected]) if h or not last]
    together = _searching(numbers, after)
    assert [h for _, h in labels(RELATION, (STEP, param), [together])] == expected
    run = RunBuilder()
    apart = [_searching([n], [a], run) for n, a in zip(numbers, after, strict=True)]
    assert [h for _, h in labels(RELATION, (STEP, param), apart)] == expected


def test_backwards_beside_a_step_are_no_search() -> None:
    run = RunBuilder()
    run.call("torch.Tensor.backward")
    run.call("torch.Tensor.backward")
    window = _searching([1], [1], run)
    assert [h for _, h in labels(RELATION, (STEP, SOME), [window])] == [False]


def test_another_optimizer_that_searches_excuses_none() -> None:
    run = RunBuilder()
    parameters = run.parameters("b", shape=(4,))
    windows = [_searching([2], [3], run)]
    held = {"optimizer": "torch.optim.LBFGS#1", "lr": 1.0, "grad": GradState.NON_ZERO}
    with run.calling("torch.optim.LBFGS.step", object="torch.optim.LBFGS#1"):
        run.call("torch.Tensor.backward")
        run.frame("begin", parameters, data=[1], **held)
        run.frame("end", parameters, data=[1], **held)
    windows.append(run.window())
    assert [h for _, h in labels(RELATION, (STEP, SOME), windows)] == [True, False]


def _stepping(*led: bool) -> Window:
    """Tell steps that change nothing, and whether a backward led to each."""
    run = RunBuilder()
    parameters = run.parameters("a", shape=(4,))
    held = {"optimizer": "torch.optim.SGD#0", "lr": 1.0, "grad": GradState.NULL}
    for is_led in led:
        if is_led:
            run.call("torch.Tensor.backward")
        with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
            run.frame("begin", parameters, data=[1], **held)
            run.frame("end", parameters, data=[1], **held)
    return run.window()


@pytest.mark.parametrize(
    ("led", "expected"),
    [
        ([True], [False]),
        ([True, False], [False, False]),
        ([False], []),
        ([False, False], [False]),
        ([False, True, False], [False, False]),
        ([False, False, False], [False, False]),
    ],
)
def test_a_single_step_without_a_backward_is_not_judged(
    led: list[bool], expected: list[bool]
) -> None:
    assert [h for _, h in labels(RELATION, (STEP, SOME), [_stepping(*led)])] == expected


@pytest.mark.parametrize("inner", ["torch.optim.SGD.step", "torch.optim.SGD.zero_grad", ""])
def test_a_backward_that_uses_its_gradients_up_is_not_judged(inner: str) -> None:
    run = RunBuilder()
    parameters = run.parameters("a")
    with run.calling("torch.Tensor.backward"):
        run.frame("begin", parameters, grad=GradState.NULL)
        if inner:
            run.call(inner, object="torch.optim.SGD#0")
        run.frame("end", parameters, grad=GradState.NULL)
    backward = APIParam(api_full_name="torch.Tensor.backward", role="backward")
    found = labels(RELATION, (backward, _param("grad", None, "not_null")), [run.window()])
    assert [h for _, h in found] == ([] if inner else [False])


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_backward_past_a_frozen_model_is_not_judged(requires_grad: bool) -> None:
    run = RunBuilder()
    parameters = run.parameters("a")
    with run.calling("torch.Tensor.backward"):
        for phase in ("begin", "end"):
            run.frame(phase, parameters, grad=GradState.NULL, requires_grad=requires_grad)
    backward = APIParam(api_full_name="torch.Tensor.backward", role="backward")
    found = labels(RELATION, (backward, _param("grad", None, "not_null")), [run.window()])
    assert [h for _, h in found] == ([False] if requires_grad else [])


def test_a_module_clears_the_gradients_that_it_has() -> None:
    run = RunBuilder()
    mine = run.parameters("a", owner="__main__.Net#0")
    others = run.parameters("a", owner="__main__.Net#1")
    both = np.concatenate([mine, others]).astype(np.int32)
    has, null = GradState.NON_ZERO, GradState.NULL
    clear = APIParam(api_full_name="torch.nn.Module.zero_grad", role="zero_grad")
    for number, after in ((0, [null, has]), (1, [has, has])):
        with run.calling("torch.nn.Module.zero_grad", object=f"__main__.Net#{number}"):
            run.frame("begin", both, grad=[has, has])
            run.frame("end", both, grad=after)
    window = run.window()
    for quantifier in ("some", "every"):
        owned = _param("grad", "non_zero", None, quantifier=quantifier, where=(("owned", True),))
        assert [h for _, h in labels(RELATION, (clear, owned), [window])] == [True, False]


def _explained(window: Window, param: VarTypeParam, api: APIParam = STEP) -> Explanation:
    examples = RELATION.monitor((api, param)).observe(window)
    return examples.explain(int(np.flatnonzero(~examples.holds)[0]))


@pytest.mark.parametrize(
    ("columns", "fact"),
    [
        ({"in_model": False, "requires_grad": False}, "in no model that ran"),
        ({"requires_grad": False, "grad": GradState.NULL}, "requires_grad=False"),
        ({"grad": GradState.NULL}, "gradient is None"),
        ({"grad": GradState.NON_FINITE, "grad_norm": np.nan}, "gradient is not finite"),
    ],
)
def test_the_cause_is_what_the_failing_variables_share(columns: dict[str, Any], fact: str) -> None:
    explanation = _explained(_step(**columns), SOME)
    assert explanation.message == "SGD.step updated 0 of 2 parameters"
    assert explanation.cause is not None
    assert explanation.cause.fact == fact
    assert explanation.cause.subjects == ("a", "b")


def test_a_fact_that_is_true_of_the_others_too_explains_nothing() -> None:
    columns = {"after": [3, 2], "requires_grad": False}
    monitor = RELATION.monitor((STEP, EVERY))
    assert not len(monitor.observe(_step(**columns)))
    assert monitor.observe(_step(**columns)).explain(0).cause is None


def test_the_cause_names_the_call_that_cleared_too_late() -> None:
    run = RunBuilder()
    parameters = run.parameters("a")
    held = {
        "optimizer": "torch.optim.SGD#0",
        "lr": 0.1,
        "in_model": True,
        "requires_grad": True,
        "grad": GradState.NULL,
    }
    run.call("torch.Tensor.backward", source="train.py:1 in train")
    run.call("torch.optim.SGD.zero_grad", source="train.py:2 in train")
    with run.calling("torch.optim.SGD.step", object="torch.optim.SGD#0"):
        run.frame("begin", parameters, data=[1], **held)
        run.frame("end", parameters, data=[1], **held)
    cause = _explained(run.window(), SOME).cause
    assert cause is not None
    assert "SGD.zero_grad (train.py:2 in train) cleared it after the last backward" in cause.text


def test_gradients_must_be_cleared_in_each_cycle() -> None:
    cleared = _param("grad", post=None, quantifier="every", where=HELD)
    assert all(h for _, h in labels(RELATION, (CYCLE, cleared), training_run(4)))
    windows = training_run(4, clears=False)
    assert [h for _, h in labels(RELATION, (CYCLE, cleared), windows)] == [
        True,
        False,
        False,
        False,
    ]
    monitor = RELATION.monitor((CYCLE, cleared))
    monitor.observe(windows[0])
    explanation = monitor.observe(windows[1]).explain(0)
    assert explanation.cause is not None
    assert explanation.cause.fact == "gradients accumulate"
    assert "zero_grad" in explanation.cause.text


@pytest.mark.parametrize("is_joined", [False, True])
def test_the_first_step_of_an_optimizer_may_use_what_an_earlier_phase_left(is_joined: bool) -> None:
    cleared = _param("grad", post=None, quantifier="every", where=HELD)
    run = RunBuilder()
    parameters = run.parameters("a")
    windows = [run.training_step(parameters) for _ in range(2)]
    for clears in (False, True, False):
        new = "torch.optim.SGD#1"
        windows.append(run.training_step(parameters, optimizer=new, clears=clears))
    if is_joined:
        windows = [join(windows)]
    found = [h for _, h in labels(RELATION, (CYCLE, cleared), windows)]
    assert found == [True, True, True, False]


def test_a_cycle_after_a_gap_starts_anew() -> None:
    cleared = _param("grad", post=None, quantifier="every", where=HELD)
    run = RunBuilder()
    parameters = run.parameters("a")
    first = run.training_step(parameters)
    gap = run.window(observed=False)
    second = run.training_step(parameters)
    assert [h for _, h in labels(RELATION, (CYCLE, cleared), [first, gap, second])] == [True, True]


def test_a_value_that_the_attribute_cannot_have_is_refused() -> None:
    with pytest.raises(InvariantError, match="expected a value that 'grad' can have, got 'huge'"):
        labels(
            RELATION, (CLEAR, _param("grad", "huge", None, where=HELD)), [_clearing([(0, 0, True)])]
        )


def test_parameters_of_another_relation_are_refused() -> None:
    with pytest.raises(InvariantError, match="expects the parameters APIParam and VarTypeParam"):
        RELATION.monitor((STEP,))
    with pytest.raises(InvariantError, match="expected a var_type that is one of"):
        RELATION.monitor((STEP, VarTypeParam(var_type="numpy.ndarray", attr_name="data")))


@pytest.mark.parametrize(
    ("end", "changes", "expected"),
    [
        (["a", "b"], [], [False]),
        (["a", "b"], [1], [True]),
        # State that the step made: another part of the model had its turn.
        (["a", "b", "c"], [], [True]),
    ],
)
def test_a_step_that_makes_state_has_done_something(
    end: list[str], changes: list[int], expected: list[bool]
) -> None:
    run = RunBuilder()
    optimizer = "torch.optim.Adam#0"
    names = {"kind": "slot", "owner": optimizer}
    param = VarTypeParam(
        var_type="torch.optim.Optimizer.state",
        attr_name="data",
        post_value="changed",
        where=(("owned", True),),
    )
    windows = []
    for _ in range(2):
        run.call("torch.Tensor.backward")
        with run.calling("torch.optim.Adam.step", object=optimizer):
            run.frame("begin", run.parameters("a", "b", **names), data=[1, 2])
            data = [9 if number in changes else number + 1 for number in range(len(end))]
            run.frame("end", run.parameters(*end, **names), data=data)
        windows.append(run.window())
    assert [h for _, h in labels(RELATION, (STEP, param), windows)][-1:] == expected


def test_what_wraps_an_optimizer_leaves_the_work_to_it() -> None:
    run = RunBuilder()
    wrapper, inner = "lib.Wrapper#0", "torch.optim.Adam#0"
    param = VarTypeParam(
        var_type="torch.optim.Optimizer.state",
        attr_name="data",
        post_value="changed",
        where=(("owned", True),),
    )
    for calls_inner in (True, False):
        run.call("torch.Tensor.backward")
        with run.calling("torch.optim.Optimizer.step", object=wrapper):
            slots = run.parameters("a", kind="slot", owner=wrapper)
            run.frame("begin", slots, data=1)
            if calls_inner:
                run.call("torch.optim.Adam.step", object=inner)
            run.frame("end", slots, data=1)
    assert [h for _, h in labels(RELATION, (STEP, param), [run.window()])] == [False]


@pytest.mark.parametrize(
    ("size", "rate", "is_inert"),
    [
        # The end of an annealing: one element may stay, and many do not.
        (1, 3e-6, True),
        (64, 3e-6, False),
        (64, 3e-9, True),
        (4, 1e-2, False),
    ],
)
def test_few_elements_may_stay_by_chance(size: int, rate: float, is_inert: bool) -> None:
    run = RunBuilder()
    with run.calling("torch.optim.Adam.step", object="torch.optim.Adam#0"):
        run.frame(
            "begin",
            run.parameters("p", shape=(size,)),
            grad=GradState.NON_ZERO,
            grad_norm=0.3,
            data_norm=0.05 * size**0.5,
            lr=rate,
            dtype="torch.float32",
        )
    window = run.window()
    assert inert(window, window.frames[0], normalised=False).tolist() == [is_inert]
    # Where all of an optimizer is concerned, chance excuses nobody.
    assert inert(window, window.frames[0], normalised=True).tolist() == [rate < 1e-8]
