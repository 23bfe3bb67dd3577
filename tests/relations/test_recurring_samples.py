"""Samples that come again in later epochs, or never, against a naive reference."""

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
from traincheck_plugin.relations.recurring_samples import (
    AGAIN,
    MAX_OTHERS,
    MIN_RECENT,
    MIN_VERDICTS,
    NEVER,
    NUM_RECENT,
    RecurringSamplesRelation,
)
from traincheck_plugin.relations.samples import samples_named
from traincheck_plugin.vocabulary import MAX_SAMPLES, Variable

RELATION = RecurringSamplesRelation()

Step = tuple[int, Sequence[int]]
"""An epoch, and the samples of a forward; none where the state of an optimizer is loaded."""

LOADED: Sequence[int] = ()
MANY = 100
"""Epochs that a rule is about."""


def _rule(claim: str, num_epochs: int = MANY, size: int = 0) -> tuple[Param, ...]:
    return samples_named("Net.0"), ConstantParam(value=(claim, num_epochs, size))


def _told(samples: Sequence[int]) -> list[int]:
    return sorted(samples)[:MAX_SAMPLES]


def _tell(run: RunBuilder, step: Step) -> Window:
    epoch, samples = step
    [code] = run.variables(
        Variable(kind="sample", name="0", owner="__main__.Net#0", type="torch.float32")
    )
    run.at(stage="training", epoch=epoch)
    if samples is LOADED:
        run.call("torch.optim.SGD.load_state_dict", object="torch.optim.SGD#0")
    else:
        told = _told(samples)
        with run.calling("__main__.Net.forward", role="forward", object="__main__.Net#0"):
            run.frame("end", np.full(len(told), code, np.int32), data=told)
        run.at(grad_enabled=False)
        with run.calling("__main__.Net.forward", role="forward", object="__main__.Net#0"):
            run.frame("end", np.full(20, code, np.int32), data=list(range(1000, 1020)))
        run.at(grad_enabled=True)
    run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
    run.at(step=run.context.step + 1)
    return run.window()


def _windows(steps: Sequence[Step]) -> list[Window]:
    run = RunBuilder()
    return [_tell(run, step) for step in steps]


def _expected(steps: Sequence[Step], claim: str) -> list[bool]:
    """Return the verdicts, with all samples of all epochs in mind."""
    loads = [place for place, (_, samples) in enumerate(steps) if samples is LOADED]
    verdicts = []
    recent: list[bool] = []
    for place, (epoch, samples) in enumerate(steps):
        if samples is LOADED:
            recent.clear()
            continue
        start = max((load for load in loads if load < place), default=-1)
        own = list(steps[start + 1 : place])
        # The epoch in which something was loaded is not whole.
        lost = {own[0][0]} if own and start >= 0 else set()
        earlier = [_told(those) for other, those in own if other != epoch and other not in lost]
        if not earlier:
            continue
        full = [max(told) for told in earlier if len(told) == MAX_SAMPLES]
        limit = min(full, default=1 << 63)
        known = {sample for told in earlier for sample in told}
        judged = [sample in known for sample in _told(samples) if sample < limit]
        recent += judged
        if judged and len(recent) >= MIN_RECENT:
            last = recent[-NUM_RECENT:]
            share = sum(last) / len(last)
            verdicts.append((1 - share if claim == AGAIN else share) <= MAX_OTHERS)
    return verdicts


SAMPLES = st.lists(st.integers(1, 60), min_size=1, max_size=30, unique=True) | st.lists(
    st.integers(1, 300), min_size=60, max_size=80, unique=True
)


@given(
    st.lists(st.tuples(st.integers(0, 1), SAMPLES | st.just(LOADED)), max_size=12),
    st.sampled_from([AGAIN, NEVER]),
)
def test_samples_are_compared_as_the_formula_says(
    several: list[tuple[int, Sequence[int]]], claim: str
) -> None:
    epoch, steps = 0, []
    for goes_on, samples in several:
        epoch += goes_on
        steps.append((epoch, samples))
    found = [holds for _, holds in labels(RELATION, _rule(claim), _windows(steps))]
    assert found == _expected(steps, claim)


def _epochs(*first: int, number: int = MIN_VERDICTS) -> list[Step]:
    """Return epochs of forwards with 20 samples each, of which the first has this number."""
    return [
        (epoch, range(start + 20 * index, start + 20 * index + 20))
        for epoch, start in enumerate(first)
        for index in range(number)
    ]


def _proposed(steps: Sequence[Step]) -> list[object]:
    proposer = RELATION.proposer()
    for window in _windows(steps):
        proposer.observe(window)
    return [hypothesis.params[1].value for hypothesis in proposer.hypotheses()]  # type: ignore[union-attr]


def test_what_always_or_never_comes_again_is_proposed() -> None:
    size = 20 * MIN_VERDICTS
    assert _proposed(_epochs(0, 0)) == [(AGAIN, 2, size)]
    assert _proposed(_epochs(0, 1000, 2000)) == [(NEVER, 3, size)]
    assert _proposed(_epochs(0)) == []
    assert _proposed(_epochs(0, 0, number=MIN_VERDICTS - 1)) == []
    # Some do.
    assert _proposed(_epochs(0, 100)) == []


def test_what_the_reference_does_not_tell_is_not_claimed() -> None:
    steps = _epochs(0, 1000, 2000)
    rule = _rule(AGAIN, 2)
    assert [holds for _, holds in labels(RELATION, rule, _windows(steps))] == [False] * MIN_VERDICTS
    # An epoch that is cut short.
    short = _rule(AGAIN, MANY, 2 * len(steps) * 20)
    assert labels(RELATION, short, _windows(steps)) == []
    never = _rule(NEVER, MANY, 2 * len(steps) * 20)
    assert all(holds for _, holds in labels(RELATION, never, _windows(steps)))


def test_an_epoch_of_which_steps_were_not_observed_is_not_known() -> None:
    run, monitor = RunBuilder(), RELATION.monitor(_rule(AGAIN))
    [start, middle, later] = [_epochs(first, number=2) for first in (0, 500, 900)]
    for _, samples in start:
        monitor.observe(_tell(run, (0, samples)))
    monitor.observe(run.window(observed=False))
    for _, samples in middle:
        monitor.observe(_tell(run, (0, samples)))
    held = [monitor.observe(_tell(run, (1, samples))).holds.tolist() for _, samples in later]
    assert held == [[], []]
    held = [monitor.observe(_tell(run, (2, samples))).holds.tolist() for _, samples in later]
    assert held == [[True], [True]]


@pytest.mark.parametrize(
    ("claim", "first", "message", "text"),
    [
        (
            AGAIN,
            (0, 1000),
            "0 of 20 samples of `Net.0` were given in an earlier epoch; in the reference all come "
            "again",
            "the data are changed in place",
        ),
        (
            NEVER,
            (0, 0),
            "20 of 20 samples of `Net.0` were given in an earlier epoch; in the reference none "
            "comes again",
            "have the same seed each time",
        ),
    ],
)
def test_the_cause_is_told(claim: str, first: tuple[int, int], message: str, text: str) -> None:
    monitor = RELATION.monitor(_rule(claim))
    *_, examples = [monitor.observe(window) for window in _windows(_epochs(*first, number=1))]
    explanation = examples.explain(0)
    assert explanation.message == message
    assert explanation.cause is not None
    assert text in explanation.cause.text
    assert explanation.cause.subjects == ("Net",)


def test_the_rule_has_words() -> None:
    assert RELATION.describe(_rule(AGAIN, 3)) == (
        "samples of `Net.0` come again in later ones of 3 epochs"
    )
    assert RELATION.describe(_rule(NEVER, 3)) == (
        "samples of `Net.0` never come again in later ones of 3 epochs"
    )
    assert RELATION.needs(_rule(NEVER)).attributes == {"forward": frozenset({("sample", "data")})}
    assert RELATION.severity(_rule(NEVER)) == "warning"


@pytest.mark.parametrize("claim", ["again", ("sometimes", 2, 3), (AGAIN, 2), (AGAIN, "2", 3)])
def test_other_parameters_are_refused(claim: object) -> None:
    with pytest.raises(InvariantError, match="expects samples"):
        RELATION.monitor((samples_named("Net.0"), ConstantParam(value=claim)))
    other = VarNameParam(var_name="Net", var_type=VAR_TYPES["input"], attr_name="data")
    with pytest.raises(InvariantError, match="expects samples"):
        RELATION.monitor((other, ConstantParam(value=(AGAIN, 2, 3))))
