"""Values of the training data that are not what they were."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import LOADER_FACTS
from traincheck_plugin.invariants.codec_params import decode_param, encode_param
from traincheck_plugin.invariants.model import VAR_TYPES, ConstantParam, Param, VarNameParam
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.value_range import MIN_OCCURRENCES, ValueRangeRelation, _in_a_row
from traincheck_plugin.vocabulary import Variable

RELATION = ValueRangeRelation()
LOADER, OTHER, MODEL = "torch.utils.data.DataLoader#0", "torch.utils.data.DataLoader#1", "lib.Net#0"
IN_A_ROW, SIZE = 3, 64

Range = tuple[float, float]
Event = Callable[[RunBuilder], object]


def _params(
    *claim: Any,
    kind: str = "batch",
    name: str = "DataLoader.x",
    evidence: tuple = (IN_A_ROW, SIZE, 1),
) -> tuple[Param, ...]:
    attribute = "lowest" if "negative" in claim else "highest"
    return (
        VarNameParam(var_name=name, var_type=VAR_TYPES[kind], attr_name=attribute),
        ConstantParam(value=claim if len(claim) == 3 else (*claim, 0.0)),
        ConstantParam(value=evidence),
    )


SOME_NEGATIVE, NONE_NEGATIVE = _params("some", "negative"), _params("none", "negative")


def _values(ranges: Sequence[Range], size: float, negative: float = 0.1) -> dict[str, Any]:
    return {
        "value": size,
        "lowest": [low for low, _ in ranges],
        "highest": [high for _, high in ranges],
        "negative": [negative if low < 0 else 0.0 for low, _ in ranges],
    }


def _batch(
    low: float,
    high: float = 1.0,
    *,
    size: float = SIZE,
    negative: float = 0.1,
    given: Range | None = None,
    loader: str = LOADER,
    stage: str = "training",
    shape: tuple[int, ...] = (8, 8),
    requires_grad: bool = False,
    shows: bool = True,
    **facts: float,
) -> Event:
    """A batch with a tensor `x`, and a forward that is given it, or what was made of it."""
    told = {"shuffles": 1, "samples": 640, "batch_size": 8, "start": 0, "batch": 0, "epoch": 0}
    told["indices"] = math.nan
    told |= facts

    def tell(run: RunBuilder) -> None:
        run.at(stage=stage)
        owned = {"owner": loader, "type": "torch.Tensor"}
        names = run.variables(*(Variable(kind="loader", name=n, **owned) for n in LOADER_FACTS))
        batch = run.variables(Variable(kind="batch", name="x", **owned))
        inputs = run.variables(Variable(kind="input", name="0", owner=MODEL, type="torch.Tensor"))
        found = _values([(low, high)], size, negative) if shows else {"value": size, "data": 1}
        with run.calling(
            "torch.utils.data.DataLoader.__next__",
            object=loader,
            outputs=[tensor("x", shape=(8, 8))],
        ):
            run.frame("end", batch, **found)
            run.frame("end", names, value=[told[name] for name in LOADER_FACTS])
        seen = (
            _values([given or (low, high)], size, negative) if shows else {"value": size, "data": 1}
        )
        item = tensor("0", shape=shape, requires_grad=requires_grad)
        with run.calling("lib.Net.forward", object=MODEL, inputs=[item]):
            if stage == "training":
                run.frame("end", inputs, **seen)

    return tell


def _held(params: tuple[Param, ...], *run: Event, cuts: Sequence[int] | None = None) -> list[bool]:
    windows = told(run, range(1, len(run)) if cuts is None else cuts)
    return [holds for _, holds in labels(RELATION, params, windows)]


GOOD, BAD = _batch(-1), _batch(0)


@pytest.mark.parametrize(
    ("claim", "good", "bad"),
    [
        (("some", "negative"), (-1, 1), (0, 1)),
        (("none", "negative"), (0, 1), (-1, 1)),
        (("some", "positive"), (-1, 1), (-1, 0)),
        (("none", "positive"), (-1, 0), (-1, 1)),
        (("some", "large", 0.5), (-0.6, 0.1), (-0.4, 0.5)),
        (("none", "large", 10.0), (-1, 10), (-255, 0)),
    ],
)
def test_what_fails_in_a_row_is_told(claim: tuple, good: Range, bad: Range) -> None:
    run = [_batch(*good), *[_batch(*bad)] * 4, _batch(*good)]
    assert _held(_params(*claim), *run) == [True, False, False, True]
    inputs = _params(*claim, kind="input", name="Net.0")
    assert _held(inputs, *run) == [True, False, False, True]


def test_less_may_happen() -> None:
    assert _held(SOME_NEGATIVE, *[BAD, BAD, GOOD] * 3) == [True] * 3


@pytest.mark.parametrize(
    "other",
    [
        _batch(0, stage="validation"),
        _batch(math.nan, math.nan),
        _batch(0, shows=False),
        _batch(0, loader="lib.Loader#0"),
    ],
)
def test_what_is_no_example(other: Event) -> None:
    assert _held(SOME_NEGATIVE, *[other] * 9) == []
    assert _held(SOME_NEGATIVE, BAD, other, BAD, other, BAD) == [False]


def test_each_loader_is_judged_by_itself() -> None:
    run = [BAD, _batch(-1, loader=OTHER)] * 3
    params = _params("some", "negative", evidence=(IN_A_ROW, SIZE, 2))
    assert _held(params, *run) == [True, True, False, True]
    # One that the reference did not have may deliver other data.
    assert _held(SOME_NEGATIVE, *run) == [False]
    assert _held(SOME_NEGATIVE, *[GOOD] * 2, *[_batch(0, loader=OTHER)] * 9) == [True] * 2


def test_small_batches_take_more_of_them() -> None:
    assert _held(SOME_NEGATIVE, *[_batch(0, size=SIZE / 2)] * 6) == [False]
    assert _held(NONE_NEGATIVE, *[_batch(-1, size=2 * SIZE)] * 3) == [False]
    assert _held(NONE_NEGATIVE, *[_batch(-1, size=3 * SIZE)] * 9) == []


@pytest.mark.parametrize(
    "computed",
    [
        _batch(0, given=(-1, 1), shape=(3, 8)),
        _batch(0, given=(-1, 1), shape=(8, 3)),
        _batch(0, given=(-1, 1), shape=()),
        _batch(0, given=(-1, 1), requires_grad=True),
    ],
)
def test_what_is_computed_is_not_judged(computed: Event) -> None:
    assert _held(_params("none", "negative", kind="input", name="Net.0"), *[computed] * 9) == []
    assert _held(_params("none", "negative"), *[computed] * 3) == [True] * 3


def test_what_is_made_of_a_batch_is_judged_by_itself() -> None:
    scaled = _batch(0, 255, given=(0, 1), shape=(8, 2, 4))
    assert _held(_params("none", "large", 10.0, kind="input", name="Net.0"), scaled) == [True]
    assert _held(_params("none", "large", 10.0), *[scaled] * 3) == [False]


def test_steps_that_are_left_out() -> None:
    run = RunBuilder()
    windows = []
    for observed in (True, True, False, True):
        BAD(run)
        windows.append(run.window(observed=observed))
    assert [holds for _, holds in labels(RELATION, SOME_NEGATIVE, windows)] == [False]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([-1.0, 0.0, math.nan]),
            st.sampled_from([SIZE / 4, SIZE, 2 * SIZE, 3 * SIZE]),
            st.sampled_from([LOADER, OTHER]),
            st.sampled_from(["training", "training", "validation"]),
        ),
        max_size=30,
    ),
    st.sets(st.integers(1, 29)),
    st.sampled_from(["some", "none"]),
)
def test_batches_are_judged_as_the_formula_says(
    run: list[tuple[float, float, str, str]], cuts: set[int], quantifier: str
) -> None:
    expected, failed = [], {LOADER: [], OTHER: []}
    for low, size, loader, stage in run:
        if stage != "training" or math.isnan(low):
            continue
        if (low < 0) == (quantifier == "some"):
            failed[loader] = []
            expected.append(True)
        elif quantifier == "some" or size <= 2 * SIZE:
            failed[loader].append(size)
            is_enough = quantifier == "none" or sum(failed[loader]) >= IN_A_ROW * SIZE
            if len(failed[loader]) >= IN_A_ROW and is_enough:
                expected.append(False)
    events = [
        _batch(low, size=size, loader=loader, stage=stage) for low, size, loader, stage in run
    ]
    params = _params(quantifier, "negative", evidence=(IN_A_ROW, SIZE, 2))
    assert _held(params, *events, cuts=sorted(cuts)) == expected


def _explanation(params: tuple[Param, ...], *run: Event) -> Any:
    (window,) = told(run, [])
    examples = RELATION.monitor(params).observe(window)
    return examples.explain(len(examples) - 1)


def test_the_cause_is_told() -> None:
    explanation = _explanation(SOME_NEGATIVE, *[BAD] * 4)
    assert explanation.message == (
        "`x` of the batches held no negative value in the last 4 batches; in the reference each did"
    )
    assert explanation.cause.fact == "values of the data"
    assert explanation.cause.subjects == ("DataLoader.x",)
    assert "DataLoader delivers `x` with values unlike those of a healthy run: what was " in (
        explanation.cause.text
    )
    params = _params("none", "large", 10.0, kind="input", name="Net.0")
    explanation = _explanation(params, *[_batch(0, 255)] * 3)
    assert explanation.message == (
        "the largest absolute value of `0` of the inputs of Net was 255, and in the last 3 batches "
        "always above 10, which is about ten times the largest in the reference"
    )
    # It is what the loader delivers.
    assert explanation.cause.subjects == ("DataLoader.x",)
    assert "Net is given `0` with values" in explanation.cause.text
    assert "not normalised" in explanation.cause.text
    scaled = _batch(0, 1, given=(0, 255))
    assert _explanation(params, *[scaled] * 3).cause.subjects == ("Net.0",)


def _proposed(*runs: Sequence[Event], cuts: Sequence[int] = ()) -> set[tuple[Param, ...]]:
    found = set()
    for run in runs:
        proposer = RELATION.proposer()
        for window in told(run, cuts):
            proposer.observe(window)
        found |= {hypothesis.params for hypothesis in proposer.hypotheses()}
    return found


def test_fewer_negative_values_are_told() -> None:
    claim = _params("some", "negative", 0.3)
    run = [_batch(-1, negative=0.6), *[_batch(-1, negative=0.25)] * 3]
    assert _held(claim, *run) == [True, False]
    assert _explanation(claim, *run).message == (
        "of `x` of the batches 25% was negative, and in the last 3 batches no more than 30%; "
        "in the reference at least twice as much"
    )
    assert RELATION.describe(claim) == (
        "of the tensors `DataLoader.x` for training each has more than 30% negative values"
    )


def test_half_of_a_large_share_of_negative_values_is_proposed() -> None:
    for shares, bound in [((0.7, 0.6), 0.3), ((0.7, 0.19), 0.0)]:
        run = [_batch(-1, negative=share) for share in shares] * MIN_OCCURRENCES
        claims = {params[1].value for params in _proposed(run)}
        assert {claim[2] for claim in claims if claim[:2] == ("some", "negative")} == {bound}


ENOUGH = [_batch(-1 - n / 100, 2, size=100) for n in range(MIN_OCCURRENCES)]


def test_what_held_each_time_is_proposed() -> None:
    evidence = (_in_a_row(MIN_OCCURRENCES), 64, 1)
    claims = [
        ("some", "negative"),
        ("some", "positive"),
        ("some", "large", 0.2),
        ("none", "large", 20.0),
    ]
    assert _proposed(ENOUGH, cuts=[3, 4]) == {
        _params(*claim, kind=kind, name=name, evidence=evidence)
        for claim in claims
        for kind, name in (("batch", "DataLoader.x"), ("input", "Net.0"))
    }
    # Where all are positive, that some are says no more than that some are large.
    without = _proposed([_batch(0, 2)] * MIN_OCCURRENCES)
    assert {params[1].value[:2] for params in without} == {
        ("none", "negative"),
        ("some", "large"),
        ("none", "large"),
    }
    mixed = _proposed([*ENOUGH, _batch(0, 2)])
    assert {params[1].value[:2] for params in mixed} == {
        ("some", "positive"),
        ("some", "large"),
        ("none", "large"),
    }


@pytest.mark.parametrize(
    "run",
    [
        ENOUGH[1:],
        [_batch(1, 1)] * 20,
        [_batch(-1, size=16)] * 20,
        [_batch(-1, shows=False)] * 20,
        [_batch(-1, stage="validation")] * 20,
        # Nobody knows whether it is a fixed data set.
        [_batch(-1, shuffles=0)] * 20,
        [_batch(-1, shuffles=math.nan, samples=math.nan, start=n) for n in range(20)],
        [_batch(-1, samples=n) for n in range(20)],
        # Other loaders take the place of the first.
        [_batch(-1, loader=f"torch.utils.data.DataLoader#{n // 20}") for n in range(40)],
    ],
)
def test_what_is_not_proposed(run: list[Event]) -> None:
    assert _proposed(run) == set()


def test_a_whole_epoch_in_order_is_enough() -> None:
    run = [_batch(-1, shuffles=0, start=n // 10) for n in range(20)]
    assert SOME_NEGATIVE[:2] in {params[:2] for params in _proposed(run)}


def test_of_loaders_that_take_turns_that_with_less_counts() -> None:
    run = [_batch(-1, loader=loader) for _ in range(12) for loader in (LOADER, OTHER)]
    found = _proposed(run)
    assert {params[2].value for params in found} == {(_in_a_row(12), SIZE, 2)}
    # Between the two, the inputs are of the one and of the other.
    assert {params[0].var_name for params in found} == {"DataLoader.x", "Net.0"}


def test_the_order_of_runs_makes_no_difference() -> None:
    runs = [ENOUGH, [*ENOUGH, *ENOUGH], [_batch(-3, 1)] * 20]
    found = {frozenset(_proposed(*order)) for order in itertools.permutations(runs)}
    assert len(found) == 1
    for params in found.pop():
        if params[1].value[:2] != ("none", "large"):
            assert all(all(_held(params, *run)) for run in runs)


def test_patience_follows_from_evidence() -> None:
    assert [_in_a_row(number) for number in (10, 30, 100, 1000, 10**6)] == [12, 6, 4, 3, 3]


def test_invariants_are_written_and_read() -> None:
    for params in _proposed(ENOUGH):
        assert tuple(decode_param(encode_param(param)) for param in params) == params
        assert RELATION.describe(params).startswith("of the tensors `")


def test_fingerprints_are_not_needed() -> None:
    plan = RELATION.needs(SOME_NEGATIVE)
    assert Plan.full().covers(plan)
    assert not any(name == "data" for pairs in plan.attributes.values() for _, name in pairs)


@pytest.mark.parametrize(
    "params",
    [
        (),
        SOME_NEGATIVE[:2],
        (SOME_NEGATIVE[0], ConstantParam(value=3), SOME_NEGATIVE[2]),
        (*SOME_NEGATIVE[:2], ConstantParam(value=(3, 64))),
        (SOME_NEGATIVE[0], ConstantParam(value=("all", "odd", 0)), SOME_NEGATIVE[2]),
        (
            VarNameParam(var_name="x", var_type=VAR_TYPES["parameter"], attr_name="lowest"),
            *SOME_NEGATIVE[1:],
        ),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="ValueRangeRelation expects"):
        RELATION.monitor(params)
