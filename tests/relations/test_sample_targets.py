"""Samples and their targets against the reference, and against a naive one."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, ConstantParam, Param, VarNameParam
from traincheck_plugin.relations import sample_targets
from traincheck_plugin.relations.sample_targets import (
    MAX_KNOWN,
    MAX_OTHERS,
    MIN_RECENT,
    MIN_REPEATED,
    NUM_RECENT,
    SampleTargetsRelation,
)
from traincheck_plugin.vocabulary import Variable

RELATION = SampleTargetsRelation()

Batch = Mapping[int, float]
"""The target of each sample; samples are small numbers."""

TARGETS = {sample: sample % 7 for sample in range(200)}


def _windows(batches: Sequence[Batch], path: str = "0") -> list[Window]:
    run, windows = RunBuilder(), []
    [code] = run.variables(
        Variable(kind="sample", name=path, owner="__main__.Net#0", type="nll_loss")
    )
    for step, batch in enumerate(batches):
        run.at(step=step, stage="training")
        with run.calling("torch.Tensor.backward", role="backward"):
            run.frame(
                "begin",
                np.full(len(batch), code, np.int32),
                data=[sample << 20 for sample in batch],
                value=list(batch.values()),
            )
        windows.append(run.window())
    return windows


def _part(start: int, number: int = 40, targets: Mapping[int, int] = TARGETS) -> Batch:
    return {sample % 200: targets[sample % 200] for sample in range(start, start + number)}


def _proposed(batches: Sequence[Batch], path: str = "0") -> list[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(batches, path):
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


def _known(params: tuple[Param, ...]) -> dict[int, int]:
    return dict(sample_targets._rule(params).known)


EPOCHS = [_part(start) for start in (*range(0, 200, 40), *range(20, 220, 40))]
"""All samples, twice."""


def test_samples_that_come_again_are_known() -> None:
    [params] = _proposed(EPOCHS)
    assert _known(params) == TARGETS
    assert RELATION.describe(params) == (
        "samples of `Net.0` have the same target in nll_loss each time: 200 are known"
    )
    assert RELATION.severity(params) == "warning"
    [nameless] = _proposed(EPOCHS, path="")
    assert "`Net`" in RELATION.describe(nameless)


@pytest.mark.parametrize(
    "batches",
    [
        # Nothing comes again, or too little.
        EPOCHS[:5],
        [*EPOCHS[:5], _part(0, MIN_REPEATED - 1)],
        # The same target for all.
        [dict.fromkeys(batch, 1.0) for batch in EPOCHS],
        # Other targets when they come again.
        [{s: (t + step // 5) % 7 for s, t in b.items()} for step, b in enumerate(EPOCHS)],
        [dict.fromkeys(batch, math.nan) for batch in EPOCHS],
    ],
)
def test_what_proves_nothing(batches: Sequence[Batch]) -> None:
    assert _proposed(batches) == []


def test_a_second_backward_of_one_step_does_not_count() -> None:
    run = RunBuilder()
    [code] = run.variables(
        Variable(kind="sample", name="0", owner="__main__.Net#0", type="nll_loss")
    )
    proposer = RELATION.proposer()
    for batch in (EPOCHS[0], EPOCHS[0]):
        run.at(step=3)
        with run.calling("torch.Tensor.backward", role="backward"):
            run.frame(
                "begin", np.full(40, code), data=[s << 20 for s in batch], value=[*batch.values()]
            )
    proposer.observe(run.window())
    assert list(proposer.hypotheses()) == []


def test_a_few_duplicates_with_another_target_are_left_out() -> None:
    [params] = _proposed([*EPOCHS, {7: 3.0, 8: 4.0}])
    assert _known(params) == {s: t for s, t in TARGETS.items() if s not in (7, 8)}


def test_of_many_samples_those_with_the_smallest_keys_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_targets, "_MAX_WATCHED", 100)
    monkeypatch.setattr(sample_targets, "MAX_KNOWN", 30)
    [params] = _proposed(EPOCHS)
    assert _known(params) == {sample: TARGETS[sample] for sample in range(30)}
    assert MAX_KNOWN >= 2 * MIN_REPEATED


@given(st.lists(st.tuples(st.integers(0, 240), st.floats(0, 1)), max_size=12), st.integers(0, 99))
def test_the_last_known_samples_are_judged_together(
    parts: list[tuple[int, float]], seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    batches = []
    for start, share in parts:
        samples = range(start, start + 9)
        batches.append({s: s % 7 + (chance.random() < share) for s in samples})
    [params] = _proposed(EPOCHS)

    expected, recent = [], []
    for batch in batches:
        known = [TARGETS[s] != target for s, target in batch.items() if s in TARGETS]
        recent = (recent + known)[-NUM_RECENT:]
        if known and len(recent) >= MIN_RECENT:
            expected.append(sum(recent) <= MAX_OTHERS * len(recent))
    assert [holds for _, holds in labels(RELATION, params, _windows(batches))] == expected
    assert [holds for _, holds in labels(RELATION, params, _windows(batches, "1"))] == []


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.int64"])
def test_other_tokens_of_which_some_are_known_by_chance_tell_nothing(dtype: str) -> None:
    some = [{s: t for s, t in batch.items() if s % 5 == 0} for batch in EPOCHS * 2]
    proposer = RELATION.proposer()
    for window in [_given(dtype), *_windows(some)]:
        proposer.observe(window)
    [hypothesis] = proposer.hypotheses()
    wrong = {s: (TARGETS[s] + 1) % 7 for s in range(0, 200, 5)}
    few, enough = (wrong | dict.fromkeys(range(1, 5 * 200, number), 3) for number in (1, 5))
    for batch, held in ((few, dtype == "torch.int64"), (enough, False)):
        found = [holds for _, holds in labels(RELATION, hypothesis.params, _windows([batch] * 3))]
        assert found == ([] if held else [False] * 3)


def _given(dtype: str) -> Window:
    """Return a window in which the model is given samples of that dtype."""
    run = RunBuilder()
    [code] = run.variables(Variable(kind="sample", name="0", owner="__main__.Net#0", type=dtype))
    with run.calling("__main__.Net.forward", role="forward", object="__main__.Net#0"):
        run.frame("end", np.full(2, code, np.int32), data=[1, 2])
    return run.window()


def test_it_is_said_how_many_have_others() -> None:
    [params] = _proposed(EPOCHS)
    wrong = {sample: (target + 1) % 7 for sample, target in EPOCHS[0].items()}
    [window] = _windows([wrong])
    explanation = RELATION.monitor(params).observe(window).explain(0)
    first = 40 - NUM_RECENT
    assert explanation.message == (
        "24 of 24 samples of `Net.0` have other targets in nll_loss than in the reference, as "
        f"{(first + 1) % 7} in place of {first % 7}"
    )
    assert explanation.cause is not None
    assert "do not belong to their samples" in explanation.cause.text
    [window] = _windows([{sample: 5000.0 + sample for sample in range(40)}])
    assert "in place of" not in RELATION.monitor(params).observe(window).explain(0).message


@pytest.mark.parametrize(
    "claim",
    [
        *(("nll_loss",), ("nll_loss", 3, "real"), ("nll_loss", "no base64", "real")),
        *(("nll_loss", "AAAA", "whole"), ("nll_loss", ""), ("nll_loss", "", "half"), 3),
    ],
)
def test_other_parameters_are_refused(claim: object) -> None:
    who = VarNameParam(var_name="Net.0", var_type=VAR_TYPES["sample"], attr_name="value")
    with pytest.raises(InvariantError, match="expects"):
        RELATION.monitor((who, ConstantParam(value=claim)))
    other = VarNameParam(var_name="Net.0", var_type=VAR_TYPES["target"], attr_name="value")
    with pytest.raises(InvariantError, match="expects a sample"):
        RELATION.monitor((other, ConstantParam(value=("nll_loss", "", "real"))))
