"""Schedules that wait for a metric, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, Param
from traincheck_plugin.relations.schedule_metric import (
    FALLEN,
    FALLEN_FAR,
    IN_A_ROW,
    KNOWN_IN_A_ROW,
    MIN_METRICS,
    ScheduleMetricRelation,
)
from traincheck_plugin.vocabulary import Item

RELATION = ScheduleMetricRelation()
STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
MOVED = APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler")
LAW: tuple[Param, ...] = (STEP, MOVED)
NAME = "torch.optim.lr_scheduler.ReduceLROnPlateau"


def _known(mode: str) -> tuple[Param, ...]:
    return (*LAW, ConstantParam(value=mode))


def _epoch(run: RunBuilder, metric: float, mode: str) -> None:
    run.call("torch.optim.SGD.step", object="torch.optim.SGD#0")
    items = [
        Item(path="mode", type="str", value=mode),
        Item(path="metric", type="str", value=repr(metric)),
    ]
    run.call(f"{NAME}.step", object=f"{NAME}#0", outputs=items)
    # Of others nothing is known.
    run.call("torch.optim.lr_scheduler.StepLR.step", object="torch.optim.lr_scheduler.StepLR#0")


def _windows(metrics: Sequence[float], mode: str, cuts: Sequence[int] = ()) -> list[Window]:
    epochs = [lambda run, m=m: _epoch(run, m, mode) for m in metrics]
    return told([*epochs, lambda run: _epoch(run, 0.0, "min")], cuts)


def _held(params: tuple[Param, ...], metrics: Sequence[float], mode: str) -> list[bool]:
    """Return what is said of the step after each metric."""
    windows = _windows(metrics, mode, range(1, len(metrics) + 1))
    return [holds for _, holds in labels(RELATION, params, windows)]


def _falls(metrics: Sequence[float]) -> bool:
    """Tell naively whether a metric that is to be high falls and falls."""
    for number, left in ((IN_A_ROW, FALLEN), (IN_A_ROW - 1, FALLEN_FAR)):
        lowest = [
            len(metrics) > number and metrics[-back] < min(metrics[:-back])
            for back in range(1, number + 1)
        ]
        if all(lowest) and 0 <= metrics[-1] <= left * metrics[0]:
            return True
    return False


@given(st.lists(st.sampled_from([0.2, 0.4, 0.45, 0.7, 0.8, 0.9, 1.0, -1.0]), max_size=8))
def test_a_metric_in_mode_max_does_not_fall_and_fall(metrics: list[float]) -> None:
    expected = [not _falls(metrics[: end + 1]) for end in range(len(metrics))]
    assert _held(LAW, metrics, "max") == expected
    assert all(_held(LAW, metrics, "min"))


@pytest.mark.parametrize(
    ("metrics", "fails"),
    [
        ([2.3, 1.9, 1.5, 0.9], True),
        # A return of episodes, which is noise.
        ([30.0, 22.0, 14.0], False),
        ([2.3, 2.1, 2.0, 1.9, 1.8], True),
        ([2.3, 0.9, 1.0], False),
        # An accuracy that gets a little worse.
        ([0.8, 0.79, 0.78, 0.77, 0.76, 0.75], False),
        ([0.1, 0.5, 0.4, 0.3, 0.2, 0.15], False),
        # A likelihood that rises.
        ([-9.0, -4.0, -3.0, -2.0, -1.0], False),
    ],
)
def test_what_falls_and_falls(metrics: list[float], fails: bool) -> None:
    assert (False in _held(LAW, metrics, "max")) is fails


@pytest.mark.parametrize(
    ("known", "mode", "metrics", "held"),
    [
        ("min", "max", [1.0, 0.9, 0.8], [True, True, False]),
        ("min", "min", [1.0, 0.9, 0.8], [True, True, True]),
        # Another metric, with its mode.
        ("min", "max", [0.1, 0.5, 0.8], [True, True, True]),
        ("max", "min", [0.1, 0.5, 0.8], [True, True, False]),
        ("max", "min", [1.0, 0.9, 0.8], [True, True, True]),
    ],
)
def test_the_mode_is_that_of_the_reference(
    known: str, mode: str, metrics: list[float], held: list[bool]
) -> None:
    assert _held(_known(known), metrics, mode) == held
    assert held.count(False) <= len(metrics) - KNOWN_IN_A_ROW


def _reference(metrics: Sequence[float], mode: str) -> list[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in told([lambda run, m=m: _epoch(run, m, mode) for m in metrics], ()):
        proposer.observe(window)
    return [hypothesis.params for hypothesis in proposer.hypotheses()]


def test_the_reference_tells_its_mode_where_the_metric_gets_better() -> None:
    better = [1.0, 0.9, 0.8]
    assert len(better) == MIN_METRICS
    assert _reference(better, "min") == [LAW, _known("min")]
    assert _reference(better[::-1], "max") == [LAW, _known("max")]
    assert _reference(better, "max") == [LAW]
    assert _reference(better[1:], "min") == [LAW]
    assert _reference([], "min") == []


def test_the_cause_is_told() -> None:
    [window] = _windows([2.0, 1.5, 1.0, 0.5], "max")
    examples = RELATION.monitor(LAW).observe(window)
    explanation = examples.explain(examples.holds.tolist().index(False))
    assert explanation.message == (
        "the metric that ReduceLROnPlateau#0 is given falls, from 2 to 0.5, and its mode is max"
    )
    assert explanation.cause is not None
    assert explanation.cause.text.startswith("mode='max' does not fit the metric")


def test_the_rules_have_words() -> None:
    assert RELATION.describe(LAW) == (
        "at Optimizer.step, LRScheduler.step in mode max was not given a metric that falls and "
        "falls"
    )
    assert RELATION.describe(_known("min")).endswith("is in mode min, and its metric falls")
    assert RELATION.severity(LAW) == "warning"


@pytest.mark.parametrize("mode", ["best", 1, None])
def test_other_modes_are_refused(mode: object) -> None:
    with pytest.raises(InvariantError, match="needs the mode min or max"):
        RELATION.monitor((*LAW, ConstantParam(value=mode)))
