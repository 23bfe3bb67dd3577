"""Equal attributes, constant results, and results like arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, VarNameParam
from traincheck_plugin.relations.base import Relation
from traincheck_plugin.relations.consistency import TOLD, WITHIN, ConsistencyRelation
from traincheck_plugin.relations.consistent_argument import ConsistentArgumentRelation
from traincheck_plugin.relations.consistent_input_output import ConsistentInputOutputRelation
from traincheck_plugin.relations.consistent_output import ConsistentOutputRelation
from traincheck_plugin.vocabulary import Item

dtypes = st.sampled_from(["torch.float32", "torch.bfloat16"])


def _proposed(relation: Relation, windows: list[Window]) -> list:
    proposer = relation.proposer()
    for window in windows:
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


def _weights(steps: list[tuple[int, int, int]]) -> Window:
    run = RunBuilder()
    parameters = run.parameters("embedding.weight", "head.weight", "other.weight")
    for values in steps:
        with run.calling("torch.optim.Adam.step"):
            run.frame("end", parameters, data=list(values))
    return run.window()


TIED = tuple(
    VarNameParam(var_name=name, var_type="torch.nn.Parameter", attr_name="data")
    for name in ("embedding.weight", "head.weight")
)


@given(st.lists(st.tuples(*[st.integers(1, 3)] * 3), max_size=6))
def test_tied_variables_are_those_equal_at_every_moment(steps: list[tuple[int, int, int]]) -> None:
    window = _weights(steps)
    found = [h for _, h in labels(ConsistencyRelation(), TIED, [window])]
    assert found == [a == b for a, b, _ in steps]
    moved = len({a for a, _, _ in steps}) > 1
    assert (TIED in _proposed(ConsistencyRelation(), [window])) == (moved and all(found))


def test_untied_weights_are_named() -> None:
    window = _weights([(1, 1, 5), (2, 3, 6)])
    examples = ConsistencyRelation().monitor(TIED).observe(window)
    explanation = examples.explain(1)
    assert explanation.message == "`embedding.weight` and `head.weight` differ in data"
    assert explanation.cause is not None
    assert "separate tensors" in explanation.cause.text


@pytest.mark.parametrize(
    "changes", [{"attr_name": "grad_hash"}, {"var_type": "torch.nn.Buffer"}], ids=str
)
def test_variables_are_compared_in_one_attribute_only(changes: dict[str, str]) -> None:
    params = (TIED[0], replace(TIED[1], **changes))
    with pytest.raises(InvariantError, match="compares one attribute of two variables of one type"):
        ConsistencyRelation().monitor(params)


def test_a_gradient_of_another_dtype_is_seen() -> None:
    run = RunBuilder()
    parameters = run.parameters("a", "b", "c")
    with run.calling("torch.optim.Adam.step"):
        run.frame(
            "begin",
            parameters,
            dtype="torch.float32",
            grad_dtype=["torch.float32", "torch.float16", ""],
        )
    window = run.window()
    assert WITHIN in _proposed(ConsistencyRelation(), [window])
    examples = ConsistencyRelation().monitor(WITHIN).observe(window)
    assert examples.holds.tolist() == [False]
    assert examples.explain(0).cause.subjects == ("b",)


def test_a_part_that_is_frozen_by_an_attribute_of_its_module_is_seen() -> None:
    run = RunBuilder()
    parameters = run.parameters("a", "b", "c")
    for told in ([True, False, True], [False, False, True]):
        with run.calling("torch.optim.Adam.step"):
            run.frame(
                "begin",
                parameters,
                module_requires_grad=told,
                requires_grad=[True, False, True],
            )
    window = run.window()
    assert TOLD in _proposed(ConsistencyRelation(), [window])
    examples = ConsistencyRelation().monitor(TOLD).observe(window)
    assert examples.holds.tolist() == [True, False]
    cause = examples.explain(1).cause
    assert cause.subjects == ("a",)
    assert "requires_grad_(...)" in cause.text


OUTPUT = (
    APIParam(api_full_name="torch.nn.functional.linear", argument="", attribute="dtype"),
    ConstantParam(value="torch.bfloat16"),
)


def _linear(calls: list[tuple[str, str]]) -> Window:
    run = RunBuilder()
    for given_dtype, returned in calls:
        run.call(
            "torch.nn.functional.linear",
            inputs=[tensor("0", dtype=given_dtype)],
            outputs=[tensor("", dtype=returned)],
        )
    return run.window()


@pytest.mark.parametrize(
    ("grad_enabled", "told"),
    [(False, "forward ran under no_grad"), (True, "was detached from what computed it")],
)
def test_why_a_result_requires_no_gradient_is_told(grad_enabled: bool, told: str) -> None:
    run = RunBuilder()
    run.at(grad_enabled=grad_enabled)
    run.call("__main__.Net.forward", outputs=[tensor("", requires_grad=False)])
    params = (
        APIParam(api_full_name="__main__.Net.forward", argument="", attribute="requires_grad"),
        ConstantParam(value=True),
    )
    examples = ConsistentOutputRelation().monitor(params).observe(run.window())
    assert examples.holds.tolist() == [False]
    explanation = examples.explain(0)
    assert explanation.message == "the result of Net.forward has requires_grad False, expected True"
    assert explanation.cause is not None
    assert told in explanation.cause.text


@given(st.lists(st.tuples(dtypes, dtypes), max_size=8))
def test_results_are_labelled_as_the_formulas_say(calls: list[tuple[str, str]]) -> None:
    window = _linear(calls)
    found = [h for _, h in labels(ConsistentOutputRelation(), OUTPUT, [window])]
    assert found == [returned == "torch.bfloat16" for _, returned in calls]
    same = (
        APIParam(api_full_name="torch.nn.functional.linear", argument="0", attribute="dtype"),
        APIParam(api_full_name="torch.nn.functional.linear", argument="result:", attribute="dtype"),
    )
    found = [h for _, h in labels(ConsistentInputOutputRelation(), same, [window])]
    assert found == [given_dtype == returned for given_dtype, returned in calls]


def test_what_was_equal_or_constant_is_proposed() -> None:
    window = _linear([("torch.float32", "torch.float32")] * 2)
    outputs = {
        (api.argument, api.attribute, constant.value)
        for api, constant in _proposed(ConsistentOutputRelation(), [window])
    }
    assert ("", "dtype", "torch.float32") in outputs
    pairs = {
        (given_.argument, returned.argument, given_.attribute)
        for given_, returned in _proposed(ConsistentInputOutputRelation(), [window])
    }
    assert ("0", "result:", "dtype") in pairs
    assert ("0", "result:", "shape") in pairs


def test_what_once_differed_is_not_proposed() -> None:
    window = _linear([("torch.float32", "torch.float32"), ("torch.float32", "torch.bfloat16")])
    pairs = {
        (returned.argument, given_.attribute)
        for given_, returned in _proposed(ConsistentInputOutputRelation(), [window])
    }
    assert pairs == {("result:", "shape")}


def test_the_first_of_several_arguments_alike_speaks_for_all() -> None:
    run = RunBuilder()
    run.call(
        "torch.Tensor.sub",
        inputs=[tensor("0"), tensor("1"), tensor("2", shape=(1, 3))],
        outputs=[tensor("")],
    )
    given = {one.argument for one, _ in _proposed(ConsistentInputOutputRelation(), [run.window()])}
    assert given == {"0"}


def _argument(attribute: str, value: object, path: str = "0") -> tuple[APIParam, ConstantParam]:
    name = "torch.nn.functional.linear"
    return APIParam(api_full_name=name, argument=path, attribute=attribute), ConstantParam(
        value=value
    )


def _given(*items: Item, grad_enabled: bool = True) -> Window:
    run = RunBuilder()
    run.at(grad_enabled=grad_enabled)
    run.call("torch.nn.functional.linear", inputs=items)
    return run.window()


@pytest.mark.parametrize(
    ("params", "item", "message", "fact"),
    [
        (
            _argument("requires_grad", True),
            tensor(),
            "argument `0` of linear requires no gradient; in the reference it requires a gradient",
            "detached",
        ),
        (
            _argument("requires_grad", False),
            tensor(requires_grad=True),
            "argument `0` of linear requires a gradient; in the reference it requires no gradient",
            "another argument",
        ),
        (
            _argument("ndim", 1),
            tensor(),
            "argument `0` of linear has 2 dimensions; in the reference it has 1 dimension",
            "another argument",
        ),
        (
            _argument("ndim", 2),
            Item(path="0", type="NoneType"),
            "argument `0` of linear is None; in the reference it has 2 dimensions",
            "another argument",
        ),
        (
            _argument("value", "sum", "reduction"),
            Item(path="reduction", type="str", value="mean"),
            "argument `reduction` of linear is 'mean'; in the reference it is 'sum'",
            "another argument",
        ),
    ],
)
def test_an_argument_of_another_kind(
    params: tuple[APIParam, ConstantParam], item: Item, message: str, fact: str
) -> None:
    examples = ConsistentArgumentRelation().monitor(params).observe(_given(item))
    assert examples.holds.tolist() == [False]
    explanation = examples.explain(0)
    assert explanation.message == message
    assert explanation.cause is not None
    assert explanation.cause.fact == fact


def test_without_a_graph_nothing_was_detached() -> None:
    monitor = ConsistentArgumentRelation().monitor(_argument("requires_grad", True))
    explanation = monitor.observe(_given(tensor(), grad_enabled=False)).explain(0)
    assert explanation.cause is not None
    assert explanation.cause.fact == "another argument"


def test_arguments_that_are_not_judged() -> None:
    several = (
        (),
        (tensor("1"),),
        (Item(path="0", type="int"),),
        (Item(path="0", type="list"), tensor("0.0")),
    )
    for items in several:
        params = _argument("ndim", 1)
        assert not len(ConsistentArgumentRelation().monitor(params).observe(_given(*items)))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([(), (2,), (2, 3)])), max_size=8))
def test_arguments_are_labelled_as_the_formula_says(
    calls: list[tuple[bool, tuple[int, ...]]],
) -> None:
    run = RunBuilder()
    for requires_grad, shape in calls:
        items = [tensor(requires_grad=requires_grad, shape=shape)]
        run.call("torch.nn.functional.linear", inputs=items)
    window, relation = run.window(), ConsistentArgumentRelation()
    found = [holds for _, holds in labels(relation, _argument("requires_grad", True), [window])]
    assert found == [requires_grad for requires_grad, _ in calls]
    found = [holds for _, holds in labels(relation, _argument("ndim", 1), [window])]
    assert found == [len(shape) == 1 for _, shape in calls]
    proposed = {
        (api.attribute, constant.value)
        for api, constant in _proposed(relation, [window])
        if api.api_full_name == "torch.nn.functional.linear"
    }
    assert proposed == {
        *(("requires_grad", True) for requires_grad, _ in calls if requires_grad),
        *(("ndim", len(shape)) for _, shape in calls),
    }


def test_only_what_computes_is_proposed() -> None:
    run = RunBuilder()
    for name in ("torch.Tensor.detach", "torch.nn.functional.relu", "__main__.Net.forward"):
        run.call(name, inputs=[tensor(), tensor("weight", type="torch.nn.Parameter")])
    proposed = _proposed(ConsistentArgumentRelation(), [run.window()])
    names = {api.api_full_name for api, _ in proposed}
    assert "torch.nn.functional.relu" in names
    assert "torch.Tensor.detach" not in names
    assert len(names) == 2
    assert {api.argument for api, _ in proposed} == {"0"}


def _two_models(tied: Sequence[bool]) -> Window:
    """Return a step of one model after the other, each tied or not."""
    run = RunBuilder()
    for number, is_tied in enumerate(tied):
        parameters = run.parameters("embed", "head", owner=f"__main__.Net#{number}")
        for step in (1, 2):
            with run.calling("torch.optim.SGD.step", object=f"torch.optim.SGD#{number}"):
                run.frame("begin", parameters, data=[step, step if is_tied else 7])
    return run.window()


def test_a_tie_is_one_of_every_model_that_has_both() -> None:
    proposer = ConsistencyRelation().proposer()
    proposer.observe(_two_models([True, True]))
    (tie,) = proposer.hypotheses()
    assert [p.var_name for p in tie.params if isinstance(p, VarNameParam)] == ["embed", "head"]
    found = labels(ConsistencyRelation(), tie.params, [_two_models([True, False])])
    assert [holds for _, holds in found] == [True, True, False, False]
