"""Samples that are there twice, or come again, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder, tensor
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, ConstantParam, Param, VarNameParam
from traincheck_plugin.relations.distinct_inputs import (
    ALL,
    ANY_TWO,
    BETWEEN,
    IN_A_ROW,
    MAX_AGAIN,
    MIN_OCCURRENCES,
    MIN_OF_ONE,
    MIN_SAMPLES,
    WITHIN,
    DistinctInputsRelation,
)
from traincheck_plugin.vocabulary import Variable

RELATION = DistinctInputsRelation()

Batch = Sequence[Sequence[int]]
"""The samples of each forward in one window."""


def _rule(which: str, root: str = "__main__.Net") -> tuple[Param, ...]:
    return (
        VarNameParam(var_name=root, var_type=VAR_TYPES["sample"], attr_name="data"),
        ConstantParam(value=which),
    )


def _windows(batches: Sequence[Batch], epochs: Sequence[int] = ()) -> list[Window]:
    run, windows = RunBuilder(), []
    [code, target] = run.variables(
        Variable(kind="sample", name="0", owner="__main__.Net#0", type="torch.float32"),
        Variable(kind="sample", name="0", owner="__main__.Net#0", type="nll_loss"),
    )
    for step, batch in enumerate(batches):
        run.at(step=step, stage="training", epoch=epochs[step] if epochs else 0)
        for samples in batch:
            with run.calling("__main__.Net.forward", role="forward", object="__main__.Net#0"):
                run.frame("end", np.full(len(samples), code, np.int32), data=list(samples))
        with run.calling("torch.Tensor.backward", role="backward"):
            # What the targets are of is another question.
            run.frame("begin", np.full(5, target, np.int32), data=[1] * 5, value=[2.0] * 5)
        windows.append(run.window())
    return windows


def _held(which: str, windows: Sequence[Window]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, _rule(which), windows)]


def _excused(holds: Sequence[bool]) -> list[bool]:
    """Return the verdicts without the first failure in a row."""
    return [held for last, held in zip([True, *holds], holds, strict=False) if held or not last]


SAMPLES = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(
    st.lists(st.tuples(st.lists(SAMPLES, min_size=1, max_size=3), st.integers(0, 1)), max_size=8)
)
def test_samples_are_compared_as_the_formulas_say(several: list[tuple[Batch, int]]) -> None:
    batches = [batch for batch, _ in several]
    epochs = [epoch for _, epoch in several]
    within, between = [], []
    for index, batch in enumerate(batches):
        samples = [sample for one in batch for sample in one]
        if len(samples) < MIN_SAMPLES:
            continue
        within.append(len(samples) - len(set(samples)) <= MAX_AGAIN * len(samples))
        if index:
            before = {sample for one in batches[index - 1] for sample in one}
            again = sum(one in before for one in samples)
            if epochs[index] == epochs[index - 1] or again < ALL * len(samples):
                between.append(again <= MAX_AGAIN * len(samples))
    windows = _windows(batches, epochs)
    assert _held(WITHIN, windows) == _excused(within)
    assert _held(BETWEEN, windows) == _excused(between)


def _proposed(batches: Sequence[Batch]) -> set[str]:
    proposer = RELATION.proposer()
    for window in _windows(batches):
        proposer.observe(window)
    hypotheses = list(proposer.hypotheses())
    for hypothesis in hypotheses:
        assert hypothesis.params == _rule(str(hypothesis.params[1].value))  # type: ignore[union-attr]
    return {str(hypothesis.params[1].value) for hypothesis in hypotheses}  # type: ignore[union-attr]


def _fresh(number: int) -> list[Batch]:
    """Return batches of two views each, with no sample twice."""
    return [
        [range(40 * step, 40 * step + 20), range(40 * step + 20, 40 * step + 40)]
        for step in range(number)
    ]


def test_what_never_comes_again_is_proposed() -> None:
    fresh = _fresh(MIN_OCCURRENCES + 1)
    assert _proposed(fresh) == {WITHIN, BETWEEN}
    assert _proposed(fresh[:-1]) == {WITHIN}
    twice: list[Batch] = [[batch[0], batch[0]] for batch in fresh]
    assert _proposed(twice) == {BETWEEN}
    # A few duplicates are in the data, more are meant.
    assert _proposed([*fresh, [[*range(2000, 2038), 2000, 2001]]]) == {WITHIN, BETWEEN}
    assert _proposed([*fresh, [[*range(2000, 2037), 2000, 2001, 2002]]]) == {BETWEEN}
    assert _proposed([*fresh, [*fresh[-1][:1], range(9000, 9020)]]) == {WITHIN}


def test_it_is_said_what_comes_again() -> None:
    views = _windows([[range(20), range(20)]] * 2)
    twice = RELATION.monitor(_rule(WITHIN))
    [*_, examples] = [twice.observe(window) for window in views]
    explanation = examples.explain(0)
    assert (
        explanation.message == "20 of 40 samples that Net was given for one batch are there twice"
    )
    assert explanation.cause is not None
    assert "two views" in explanation.cause.text
    streams = _windows([[range(step, step + 20), range(900, 920)] for step in (0, 40, 80)])
    again = RELATION.monitor(_rule(BETWEEN))
    [*_, examples] = [again.observe(window) for window in streams]
    explanation = examples.explain(0)
    assert (
        explanation.message == "20 of 40 samples that Net was given are those of the batch before"
    )
    assert explanation.cause is not None
    assert "its stream begins anew" in explanation.cause.text


def test_predictions_are_told_from_targets() -> None:
    run = RunBuilder()
    target, prediction = run.variables(
        *(
            Variable(kind="sample", name=name, owner="mse_loss", type="torch.float32")
            for name in ("target", "prediction")
        )
    )
    windows = []
    for step in range(2):
        run.at(step=step, stage="training")
        with run.calling("torch.Tensor.backward", role="backward"):
            run.frame("begin", np.full(4, target, np.int32), data=[step + 5 * n for n in range(4)])
            run.frame("begin", np.full(4, prediction, np.int32), data=[90, 90, 90, step])
        run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
        windows.append(run.window())
    assert [held for _, held in labels(RELATION, _rule(WITHIN, "mse_loss"), windows)] == [True] * 2
    rule = _rule(WITHIN, "mse_loss.prediction")
    assert [held for _, held in labels(RELATION, rule, windows)] == [False]
    monitor = RELATION.monitor(rule)
    [_, examples] = [monitor.observe(window) for window in windows]
    explanation = examples.explain(0)
    assert explanation.message == (
        "2 of 4 predictions that mse_loss was given for one batch are there twice"
    )
    assert explanation.cause is not None
    assert "indices that repeat" in explanation.cause.text
    assert RELATION.describe(rule) == (
        "the predictions that mse_loss is given for one batch differ from one another"
    )
    assert _held(BETWEEN, windows) == []


Forward = tuple[Sequence[Sequence[int]], bool, int]
"""The samples in each argument, whether one has two different numbers, and arguments untold."""


def _forwards(several: Sequence[Forward], *, trains: bool = True) -> list[Window]:
    run, windows = RunBuilder(), []
    owner = "__main__.Net#0"
    for step, (arguments, varies, num_untold) in enumerate(several):
        run.at(step=step, stage="training", grad_enabled=trains)
        number = len(arguments)
        inputs = run.variables(
            *(
                Variable(kind="input", name=str(place), owner=owner, type="torch.Tensor")
                for place in range(number)
            )
        )
        samples = run.variables(
            *(
                Variable(kind="sample", name=str(place), owner=owner, type="torch.float32")
                for place in range(number)
            )
        )
        shapes = [tensor(str(place), shape=(8, 3)) for place in range(number + num_untold)]
        with run.calling("__main__.Net.forward", role="forward", object=owner, inputs=shapes):
            highest = [0.0] * (number - 1) + [float(varies)]
            run.frame(
                "end",
                inputs,
                data=[step + 1] * number,
                value=[24.0] * number,
                lowest=[0.0] * number,
                highest=highest,
                negative=[0.0] * number,
            )
            for code, keys in zip(samples, arguments, strict=True):
                run.frame("end", np.full(len(keys), code, np.int32), data=list(keys))
        windows.append(run.window())
    return windows


ARGUMENT = st.one_of(
    st.integers(1, 9).map(lambda key: [key] * MIN_OF_ONE),
    st.just([*range(1, MIN_OF_ONE + 1)]),
    st.just([5] * (MIN_OF_ONE - 1)),
    st.just([0] * MIN_OF_ONE),
)


@given(
    st.lists(
        st.tuples(
            st.lists(ARGUMENT, min_size=1, max_size=2),
            st.sampled_from([True, True, False]),
            st.sampled_from([0, 0, 1]),
        ),
        max_size=12,
    )
)
def test_a_model_that_sees_one_sample_only_is_told(several: list[Forward]) -> None:
    expected, num_failed = [], 0
    for arguments, varies, num_untold in several:
        is_told = all(any(keys) and len(keys) >= MIN_OF_ONE for keys in arguments)
        if num_untold or not is_told:
            continue
        is_one = varies and all(len(set(keys)) == 1 for keys in arguments)
        num_failed = num_failed + 1 if is_one else 0
        if not is_one or num_failed >= IN_A_ROW:
            expected.append(not is_one)
    windows = _forwards(several)
    assert [held for _, held in labels(RELATION, (ANY_TWO,), windows)] == expected
    assert labels(RELATION, (ANY_TWO,), _forwards(several, trains=False)) == []


def test_one_sample_for_all_has_words() -> None:
    windows = _forwards([([[7] * MIN_OF_ONE], True, 0)] * IN_A_ROW)
    proposer = RELATION.proposer()
    monitor = RELATION.monitor((ANY_TWO,))
    for window in windows:
        proposer.observe(window)
        examples = monitor.observe(window)
    assert [one.params for one in proposer.hypotheses()] == [(ANY_TWO,)]
    explanation = examples.explain(0)
    assert explanation.message == (
        "all 8 samples that Net was given are the same, as in the forward before"
    )
    assert explanation.cause is not None
    assert "stored without a copy" in explanation.cause.text
    assert RELATION.describe((ANY_TWO,)) == "not all samples that a model is given are the same"
    assert ("input", "highest") in RELATION.needs((ANY_TWO,)).attributes["forward"]


def test_what_was_not_observed_is_not_compared() -> None:
    run = RunBuilder()
    [code] = run.variables(
        Variable(kind="sample", name="0", owner="__main__.Net#0", type="torch.float32")
    )
    monitor = RELATION.monitor(_rule(BETWEEN))
    held = []
    for number in range(6):
        run.at(step=number, stage="training")
        if number % 2 == 0:
            with run.calling("__main__.Net.forward", role="forward", object="__main__.Net#0"):
                run.frame("end", np.full(9, code, np.int32), data=list(range(9)))
        held += monitor.observe(run.window(observed=number % 2 == 0)).holds.tolist()
    assert held == []


@pytest.mark.parametrize("claim", ["other", 3, ("within",)])
def test_other_parameters_are_refused(claim: object) -> None:
    with pytest.raises(InvariantError, match="expects the class of a model"):
        RELATION.monitor((_rule(WITHIN)[0], ConstantParam(value=claim)))
    other = VarNameParam(var_name="Net", var_type=VAR_TYPES["input"], attr_name="data")
    with pytest.raises(InvariantError, match="expects the class of a model"):
        RELATION.monitor((other, ConstantParam(value=WITHIN)))


def test_the_rules_are_sentences() -> None:
    assert RELATION.describe(_rule(WITHIN)) == (
        "the samples that Net is given for one batch differ from one another"
    )
    assert RELATION.describe(_rule(BETWEEN)).endswith("are not those of the batch before")
    assert RELATION.needs(_rule(WITHIN)).attributes == {"forward": frozenset({("sample", "data")})}
    assert RELATION.severity(_rule(WITHIN)) == "warning"
