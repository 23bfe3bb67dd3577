"""Models that are evaluated in training mode, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, Param, VarNameParam
from traincheck_plugin.relations.evaluated_model import (
    IN_EVAL_MODE,
    MIN_FORWARDS,
    MIN_SAMPLES,
    EvaluatedModelRelation,
)
from traincheck_plugin.vocabulary import Variable

RELATION = EvaluatedModelRelation()
LAW: tuple[Param, ...] = (IN_EVAL_MODE,)

Event = Literal["start", "next", "other", "train", "eval", "wrong", "plain"]
"""A loader of held-out data starts or delivers, one for training delivers and the model learns from
the batch, or learns from whatever there is; the model is evaluated in eval mode, in training mode,
or in a mode that does not matter."""

EVALUATION: tuple[Event, ...] = ("start", "next", "eval", "next", "eval", "next", "eval")
FORGOTTEN: tuple[Event, ...] = ("start", "next", "wrong", "next", "wrong", "next", "wrong")


def _rule(root: str = "Net") -> tuple[Param, ...]:
    return (VarNameParam(var_name=root, var_type=VAR_TYPES["evaluation"], attr_name="value"),)


def _evaluate(run: RunBuilder, trains: bool, number: int, owner: str = "__main__.Net#0") -> None:
    variable = Variable(kind="evaluation", name="", owner=owner, type=owner.partition("#")[0])
    run.at(grad_enabled=False)
    with run.calling(f"{owner.partition('#')[0]}.forward", role="forward", object=owner):
        run.frame("end", run.variables(variable), value=float(trains), number=float(number))
    run.at(grad_enabled=True)


def _learn(run: RunBuilder) -> None:
    run.call("__main__.Net.forward", role="forward", object="__main__.Net#0")
    run.call("torch.autograd.backward", role="backward")


def _deliver(run: RunBuilder, number: int, call: str = "__next__") -> None:
    loader = f"torch.utils.data.DataLoader#{number}"
    run.call(f"torch.utils.data.DataLoader.{call}", role="data", object=loader)


def _windows(events: Sequence[Event], cuts: Sequence[int] = ()) -> list[Window]:
    run, windows = RunBuilder(), []
    for place, event in enumerate(events):
        if place in cuts:
            windows.append(run.window())
        match event:
            case "start":
                _deliver(run, 1, "__iter__")
            case "next":
                _deliver(run, 1)
            case "other":
                _deliver(run, 0)
                _learn(run)
            case "train":
                _learn(run)
            case "eval" | "wrong" | "plain":
                _evaluate(run, event != "eval", event != "plain")
    windows.append(run.window())
    return windows


def _expected(events: Sequence[Event]) -> list[bool]:
    """Judge by the formula, looking back from each evaluation."""
    verdicts: list[bool] = []
    for place, event in enumerate(events):
        if event not in ("eval", "wrong"):
            continue
        before = events[:place]
        if not {"other", "train"} & set(before):
            continue
        # The batch: of the held-out data, and delivered last.
        deliveries = [p for p, e in enumerate(before) if e in ("next", "other")]
        if not deliveries or before[deliveries[-1]] != "next":
            continue
        start = max((p for p, e in enumerate(before) if e == "start"), default=-1)
        since = before[start + 1 :]
        if {"other", "train"} & set(since) or since.count("next") < 2:
            continue
        # Nothing was ever trained on a batch of it.
        told = [event for event in before if event != "start"]
        if ("next", "train") in pairwise(told):
            continue
        batches = [p for p, e in enumerate(since) if e == "next"]
        runs = [e for e in since[batches[-1] :] if e in ("eval", "wrong", "plain")]
        earlier = [e for e in since[batches[-2] : batches[-1]] if e in ("eval", "wrong", "plain")]
        if runs or len(earlier) != 1:
            continue
        verdicts.append(event == "eval")
    return verdicts


EVENTS = st.sampled_from(["start", "next", "other", "train", "eval", "wrong", "plain"])
PHASES = st.sampled_from([EVALUATION, FORGOTTEN, ("other",), ("other", "other"), ("next", "train")])


@given(
    st.one_of(
        st.lists(EVENTS, max_size=16),
        st.lists(PHASES, max_size=5).map(lambda phases: [e for phase in phases for e in phase]),
    ),
    st.sets(st.integers(0, 30)),
)
def test_evaluations_are_judged_as_the_formula_says(events: list[Event], cuts: set[int]) -> None:
    found = labels(RELATION, LAW, _windows(events, sorted(cuts)))
    assert [holds for _, holds in found] == _expected(events)


def test_what_it_is_for() -> None:
    def held(*events: Event) -> list[bool]:
        return [holds for _, holds in labels(RELATION, LAW, _windows(events))]

    assert held("other", *EVALUATION, "other", *EVALUATION) == [True] * 4
    assert held("other", *EVALUATION, "other", *FORGOTTEN) == [True] * 2 + [False] * 2
    # A model that was not trained yet is tried, a mode that does not matter is none.
    assert held(*FORGOTTEN) == []
    assert held("other", "start", "next", "plain", "next", "plain", "next", "plain") == []
    # One batch is looked at, or each several times, as where dropout tells how sure a model is.
    assert held("other", *("start", "next", "wrong") * 5) == []
    assert held("other", "start", *("next", "wrong", "wrong") * 5) == []
    # Statistics are taken anew of what is trained on.
    assert held("start", "next", "train", *FORGOTTEN) == []


Part = Literal["a", "b", "test", "noise"]
"""Samples: two batches that are trained on, what is held out, or what was never there before."""

Given = tuple[Part, Literal["train", "eval", "wrong"]]


def _keys(part: Part, place: int) -> list[int]:
    first = {"a": 100, "b": 200, "test": 300, "noise": 1000 * (place + 1)}[part]
    return list(range(first, first + MIN_SAMPLES))


def _on_samples_in(run: RunBuilder, place: int, event: Given) -> None:
    part, what = event
    owner = "__main__.Net#0"
    sample = Variable(kind="sample", name="0", owner=owner, type="torch.float32")
    evaluation = Variable(kind="evaluation", name="", owner=owner, type="__main__.Net")
    run.at(grad_enabled=what == "train")
    with run.calling("__main__.Net.forward", role="forward", object=owner):
        keys = _keys(part, place)
        codes = np.repeat(run.variables(sample), len(keys))
        if what != "train":
            run.frame("end", run.variables(evaluation), value=float(what == "wrong"), number=1)
        run.frame("end", codes, data=keys)
    run.at(grad_enabled=True)
    if what == "train":
        run.call("torch.autograd.backward", role="backward")


def _on_samples(events: Sequence[Given], cuts: Sequence[int] = ()) -> list[Window]:
    run, windows = RunBuilder(), []
    for place, event in enumerate(events):
        if place in cuts:
            windows.append(run.window())
        _on_samples_in(run, place, event)
    windows.append(run.window())
    return windows


def _expected_on_samples(events: Sequence[Given]) -> list[bool]:
    verdicts = []
    for place, (part, what) in enumerate(events):
        before = events[:place]
        trained = [p for p, (_, w) in enumerate(before) if w == "train"]
        same = [
            p
            for p in range(place)
            if part != "noise" and before[p] in ((part, "eval"), (part, "wrong"))
        ]
        if what == "train" or not trained or not same:
            continue
        # The run before was in an evaluation of its own, and alone there.
        phases = [sum(p < q for p in trained) for q in same]
        if phases[-1] == len(trained) or phases.count(phases[-1]) > 1:
            continue
        if part in {before[p][0] for p in trained}:
            continue
        last = before[trained[-1]][0]
        if last == "noise" or last not in {before[p][0] for p in trained[:-1]}:
            continue
        verdicts.append(what == "eval")
    return verdicts


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "test", "noise"]),
            st.sampled_from(["train", "eval", "wrong"]),
        ),
        max_size=14,
    ),
    st.sets(st.integers(0, 14)),
)
def test_samples_that_are_held_out_are_known(events: list[Given], cuts: set[int]) -> None:
    found = labels(RELATION, LAW, _on_samples(events, sorted(cuts)))
    assert [holds for _, holds in found] == _expected_on_samples(events)


def test_an_evaluation_of_tensors_is_one() -> None:
    def held(*events: Given) -> list[bool]:
        return [holds for _, holds in labels(RELATION, LAW, _on_samples(events))]

    epoch: tuple[Given, ...] = (("a", "train"), ("b", "train"))
    wrong: Given = ("test", "wrong")
    assert held(*epoch, wrong, *epoch, wrong, *epoch, wrong) == [False] * 2
    # A generator is shown the same noise each time, and trained on another.
    noise: tuple[Given, ...] = (("noise", "train"),) * 2
    assert held(*noise, wrong, *noise, wrong) == []
    # Run several times, it shows how sure it is; and it may be tried on what it was trained on.
    assert held(*epoch, wrong, wrong, *epoch, wrong, wrong) == []
    assert held(*epoch, ("a", "wrong"), *epoch, ("a", "wrong")) == []


@pytest.mark.parametrize(("part", "expected"), [("test", [False] * 2), ("a", [])])
def test_samples_that_were_trained_on_are_not_held_out_by_their_loader(
    part: Part, expected: list[bool]
) -> None:
    run = RunBuilder()
    for trained in ("a", "b"):
        _on_samples_in(run, 0, (trained, "train"))
    # As for statistics of batch norm, which a loader of its own delivers the data for.
    _deliver(run, 1, "__iter__")
    for place in range(3):
        _deliver(run, 1)
        _on_samples_in(run, place, (part, "wrong"))
    assert [holds for _, holds in labels(RELATION, LAW, [run.window()])] == expected


def test_all_models_of_a_class_are_judged_where_a_reference_is_known() -> None:
    windows = _windows(["plain", "eval", "wrong"], [1, 2])
    assert [holds for _, holds in labels(RELATION, _rule(), windows)] == [False, True, False]
    assert labels(RELATION, _rule("Other"), windows) == []


def _proposed(events: Sequence[Event]) -> list[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(events, range(1, len(events))):
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


def test_what_the_reference_shows_is_proposed() -> None:
    assert _proposed(["other", *EVALUATION]) == [LAW, _rule()]
    assert _proposed(["eval"] * MIN_FORWARDS) == [_rule()]
    assert _proposed(["eval"] * (MIN_FORWARDS - 1)) == []
    assert _proposed(["other", *EVALUATION, "wrong"]) == [LAW]
    assert _proposed(["other", *FORGOTTEN]) == []


def test_the_cause_is_told() -> None:
    [window] = _windows(["wrong"])
    explanation = RELATION.monitor(_rule()).observe(window).explain(0)
    assert explanation.message == "Net is evaluated in training mode"
    assert explanation.cause is not None
    assert "no `eval()` of Net" in explanation.cause.text
    assert RELATION.describe(_rule()) == "Net is in eval mode when it runs without gradients"
    assert "when it is evaluated on other data" in RELATION.describe(LAW)
    assert RELATION.severity(LAW) == "warning"
    wanted = frozenset({("evaluation", "value"), ("evaluation", "number")})
    assert RELATION.needs(_rule()).attributes == {"forward": wanted}
    assert RELATION.needs(LAW).attributes == {"forward": wanted | {("sample", "data")}}


@pytest.mark.parametrize(
    "params", [(), (VarNameParam(var_name="Net", var_type="torch.nn.Module", attr_name="value"),)]
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects one parameter about the mode"):
        RELATION.monitor(params)
