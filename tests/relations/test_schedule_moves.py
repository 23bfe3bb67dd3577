"""Schedulers that are stepped and change nothing."""

from __future__ import annotations

import itertools

import pytest

from tests.builders import RunBuilder
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam
from traincheck_plugin.relations.schedule_moves import MIN_CALLS, ScheduleMovesRelation
from traincheck_plugin.vocabulary import Item

RELATION = ScheduleMovesRelation()
API = APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler")
NAME = "torch.optim.lr_scheduler.StepLR"


def _run(rates: list[float], *, number: int = 0, metric: bool = False) -> list[Window]:
    run = RunBuilder()
    options = run.parameters("0.lr", kind="group", owner="torch.optim.SGD#0")
    windows = []
    for before, after in itertools.pairwise(rates):
        inputs = [Item(path="1", type="float")] if metric else []
        with run.calling(f"{NAME}.step", object=f"{NAME}#{number}", inputs=inputs):
            run.frame("begin", options, value=before)
            run.frame("end", options, value=after)
        windows.append(run.window())
    return windows


def _holds(windows: list[Window], number: int) -> list[bool]:
    monitor = RELATION.monitor((API, ConstantParam(value=number)))
    return [bool(held) for window in windows for held in monitor.observe(window).holds]


def test_a_change_has_to_come_in_time() -> None:
    assert _holds(_run([1.0] * 6), 3) == [True, True, True, False, False]
    assert _holds(_run([1.0, 1.0, 0.5] + [0.5] * 9), 3) == [True] * 11
    assert _holds(_run([1.0] * 9, metric=True), 3) == []


def test_the_reference_tells_how_long_it_may_take() -> None:
    def proposed(windows: list[Window]) -> list[int]:
        proposer = RELATION.proposer()
        for window in windows:
            proposer.observe(window)
        return [h.params[1].value for h in proposer.hypotheses()]

    assert proposed(_run([1.0, 0.9, 0.8])) == [MIN_CALLS]
    assert proposed(_run([1.0] * 9 + [0.5])) == [16]
    assert proposed(_run([1.0] * 9)) == []


def test_the_cause_is_told() -> None:
    monitor = RELATION.monitor((API, ConstantParam(value=1)))
    _, window = _run([1.0] * 3)
    monitor.observe(window)
    explanation = monitor.observe(window).explain(0)
    assert explanation.message.startswith("2 calls of StepLR.step changed nothing")
    assert explanation.cause is not None
    assert "the learning rate stays what it was" in explanation.cause.text


@pytest.mark.parametrize("number", [0, True, "3"])
def test_the_number_of_calls_is_one(number: object) -> None:
    with pytest.raises(InvariantError, match="needs a number of calls"):
        RELATION.monitor((API, ConstantParam(value=number)))
