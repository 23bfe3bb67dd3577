"""Samples that are trained on and evaluated, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, ConstantParam, Param, VarNameParam
from traincheck_plugin.relations import samples as known_samples
from traincheck_plugin.relations.held_out_samples import (
    MAX_SHARED,
    MIN_RECENT,
    NUM_RECENT,
    HeldOutSamplesRelation,
)
from traincheck_plugin.vocabulary import MAX_SAMPLES, Variable

RELATION = HeldOutSamplesRelation()

Forward = tuple[int, bool, Sequence[int]]
"""Which model, whether with gradients, and the samples; none where a state is loaded into it."""

LOADED: Sequence[int] = ()


def _rule(name: str = "Net.0") -> tuple[Param, ...]:
    return (VarNameParam(var_name=name, var_type=VAR_TYPES["sample"], attr_name="data"),)


def _told(samples: Sequence[int]) -> list[int]:
    return sorted(samples)[:MAX_SAMPLES]


def _windows(forwards: Sequence[Forward]) -> list[Window]:
    run, windows = RunBuilder(), []
    for step, (number, trains, samples) in enumerate(forwards):
        owner = f"__main__.Net#{number}"
        code, target = run.variables(
            Variable(kind="sample", name="0", owner=owner, type="torch.float32"),
            Variable(kind="sample", name="0", owner=owner, type="nll_loss"),
        )
        stage = "training" if trains else "validation"
        run.at(step=step, stage=stage, grad_enabled=trains)
        if samples is LOADED:
            run.call("torch.nn.Module.load_state_dict", object=owner)
        else:
            told = _told(samples)
            with run.calling("__main__.Net.forward", role="forward", object=owner):
                run.frame("end", np.full(len(told), code, np.int32), data=told)
        if trains:
            with run.calling("torch.Tensor.backward", role="backward"):
                # What the targets are of is another question.
                run.frame("begin", np.full(20, target, np.int32), data=[1] * 20, value=[2.0] * 20)
            run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
        windows.append(run.window())
    return windows


def _expected(forwards: Sequence[Forward]) -> list[bool]:
    """Return the verdicts, with all samples of all forwards in mind."""
    verdicts = []
    for end, (number, trains, samples) in enumerate(forwards):
        before = [one for one in forwards[:end] if one[0] == number]
        loads = [index for index, one in enumerate(before) if one[2] is LOADED]
        own = [*before[loads[-1] + 1 if loads else 0 :], (number, trains, samples)]
        shared: list[bool] = []
        judged: list[bool] = []
        for index, (_, way, those) in enumerate(own):
            if way != trains or those is LOADED:
                continue
            others = [_told(one) for _, other, one in own[:index] if other != trains]
            full = [max(told) for told in others if len(told) == MAX_SAMPLES]
            limit = min(full, default=1 << 63)
            known = {sample for told in others for sample in told}
            judged = [sample in known for sample in _told(those) if others and sample < limit]
            shared += judged
        if samples is not LOADED and judged and len(shared) >= MIN_RECENT:
            recent = shared[-NUM_RECENT:]
            verdicts.append(sum(recent) <= MAX_SHARED * len(recent))
    return verdicts


SAMPLES = st.lists(st.integers(1, 400), min_size=1, max_size=90, unique=True) | st.just(LOADED)


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans(), SAMPLES), max_size=14))
def test_samples_are_compared_as_the_formula_says(forwards: list[Forward]) -> None:
    found = [holds for _, holds in labels(RELATION, _rule(), _windows(forwards))]
    assert found == _expected(forwards)


def _proposed(forwards: Sequence[Forward]) -> list[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(forwards):
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


TRAIN: Forward = (0, True, range(100, 140))
EVALUATE: Forward = (0, False, range(300, 340))


def test_parts_that_come_again_and_share_nothing_are_proposed() -> None:
    assert _proposed([TRAIN, EVALUATE, TRAIN, EVALUATE]) == [_rule()]
    # Who evaluates once may come upon anything next time, as who sees each sample once.
    assert _proposed([TRAIN, EVALUATE, TRAIN]) == []
    assert _proposed([TRAIN, EVALUATE, EVALUATE]) == []
    assert _proposed([TRAIN, (0, False, range(130, 170))] * 2) == []
    # Two of forty are duplicates in the data, three are meant.
    assert _proposed([TRAIN, (0, False, range(138, 178))] * 2) == [_rule()]
    assert _proposed([TRAIN, (0, False, range(137, 177))] * 2) == []
    # Each model has data of its own.
    folds: list[Forward] = [TRAIN, EVALUATE] * 2
    folds += [(1, True, EVALUATE[2]), (1, False, TRAIN[2])] * 2
    assert _proposed(folds) == [_rule()]
    assert _proposed([(0, *rest) for _, *rest in folds]) == []  # type: ignore[misc]


def test_what_is_kept_in_mind_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_samples, "MAX_KEPT", 40)
    forwards: list[Forward] = [(0, True, range(start, 200, 4)) for start in range(4)]
    windows = _windows([*forwards, (0, False, range(200))])
    # Those with the smallest keys are judged still.
    assert [holds for _, holds in labels(RELATION, _rule(), windows)] == [False]
    windows = _windows([*forwards, (0, False, range(100, 300))])
    assert labels(RELATION, _rule(), windows) == []


@pytest.mark.parametrize(
    ("forwards", "message"),
    [
        (
            [TRAIN, (0, False, range(120, 160))],
            "20 of 40 samples of `Net.0` that are evaluated were trained on before",
        ),
        (
            [EVALUATE, (0, True, EVALUATE[2])],
            "40 of 40 samples of `Net.0` that are trained on were evaluated before",
        ),
    ],
)
def test_it_is_said_what_is_in_both_parts(forwards: list[Forward], message: str) -> None:
    monitor = RELATION.monitor(_rule())
    [*_, examples] = [monitor.observe(window) for window in _windows(forwards)]
    explanation = examples.explain(0)
    assert explanation.message == message
    assert explanation.cause is not None
    assert explanation.cause.text.startswith("Net is evaluated on what it is trained on")
    assert explanation.cause.subjects == ("Net",)


def test_other_parameters_are_refused() -> None:
    for params in (
        (),
        (*_rule(), ConstantParam(value=1)),
        (VarNameParam(var_name="Net", var_type=VAR_TYPES["input"], attr_name="data"),),
    ):
        with pytest.raises(InvariantError, match="expects samples as one VarNameParam"):
            RELATION.monitor(params)


def test_the_rule_is_a_sentence() -> None:
    assert RELATION.describe(_rule()) == "no sample of `Net.0` is trained on and evaluated"
    assert RELATION.needs(_rule()).attributes == {"forward": frozenset({("sample", "data")})}
    assert RELATION.severity(_rule()) == "warning"
