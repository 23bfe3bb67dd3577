"""Seeded bugs are reported; their clean twins are silent (see test_healthy.py)."""

from __future__ import annotations

import pytest

from tests.accelerate_adapter.loops import report_of

of_both = pytest.mark.parametrize(
    ("reference", "accumulate"), [("from_plain", 1), ("from_accumulating", 4)]
)


@of_both
def test_an_optimizer_of_a_model_that_was_replaced(request, reference, accumulate):
    invariants = request.getfixturevalue(reference)
    report = report_of(invariants, accumulate=accumulate, bug="replaced_model")
    diagnosis = report.diagnoses[0]
    assert diagnosis.severity == "critical"
    assert "Adam.step updated 0 of 6 parameters" in diagnosis.message
    assert "are in no model that ran" in diagnosis.cause
    assert diagnosis.source.endswith(" in accelerated")
    assert diagnosis.first.step == 0


@of_both
def test_gradients_that_are_never_cleared(request, reference, accumulate):
    invariants = request.getfixturevalue(reference)
    report = report_of(invariants, accumulate=accumulate, bug="no_zero_grad")
    diagnosis = report.diagnoses[0]
    assert diagnosis.severity == "critical"
    assert "zero_grad was not called" in diagnosis.cause
    assert diagnosis.first.step == 1


@pytest.mark.parametrize("bug", ["zero_grad_first", "model_zero_grad"])
def test_accumulated_gradients_that_are_cleared(from_accumulating, bug):
    report = report_of(from_accumulating, accumulate=4, bug=bug)
    found = [d for d in report.diagnoses if "no gradients were left to add to" in d.message]
    assert [d.first.step for d in found] == [0]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_schedule_that_goes_on_with_every_micro_batch(from_accumulating):
    report = report_of(from_accumulating, accumulate=4, bug="unprepared_scheduler")
    (diagnosis,) = report.diagnoses
    assert "LRScheduler.step was called 4 times for one Adam.step" in diagnosis.message


def test_gradients_of_an_epoch_that_are_left_over_for_the_next(from_accumulating):
    assert report_of(from_accumulating, accumulate=4, bug="unprepared_loader").diagnoses
