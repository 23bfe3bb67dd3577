"""Metrics reach the trackers of the training and disturb nothing that it logs itself."""

from __future__ import annotations

import pytest
from accelerate.tracking import GeneralTracker

from tests.accelerate_adapter.loops import accelerated, watching

VIOLATIONS = "traincheck/violations"


class Tracker(GeneralTracker):
    """Keeps what is logged."""

    name = "wandb"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.rows = []
        self.is_finished = False

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **kwargs):
        assert not self.is_finished
        self.rows.append((dict(values), step, kwargs))

    def finish(self):
        self.is_finished = True

    @property
    def own(self):
        """What the training logged."""
        return [(step, kwargs) for values, step, kwargs in self.rows if "loss" in values]

    @property
    def ours(self):
        return [row for row in self.rows if VIOLATIONS in row[0]]


class Strict(Tracker):
    """Takes nothing but what it knows."""

    def log(self, values, step=None, **kwargs):
        if set(values) != {"loss"}:
            raise KeyError(sorted(values)[0])
        super().log(values, step, **kwargs)


def train(tracker, invariants, is_counting=True, is_initialised=True, ends=False, **options):
    def log(accelerator, number):
        if number == 0 and is_initialised:
            accelerator.init_trackers("project")
        if number % 2 == 1:
            accelerator.log({"loss": 0.0}, **({"step": 100 + number} if is_counting else {}))
        if ends and number == 29:
            accelerator.end_training()

    block, _ = watching(invariants=invariants, **options.pop("watch", {"log": True}))
    accelerated(block, on_batch=log, log_with=tracker, **options)
    return tracker


def test_a_healthy_run_logs_once_at_the_end(from_plain):
    tracker = train(Tracker(), from_plain)
    ((values, step, kwargs),) = tracker.ours
    assert tracker.rows[-1][0] is values
    assert values[VIOLATIONS] == 0
    assert values["traincheck/overhead"] > 0
    # The step that the training logged last, and no row of its own.
    assert step == 129
    assert kwargs == {"commit": False}


@pytest.mark.parametrize("ends", [False, True])
def test_a_violation_is_logged_at_the_step_of_the_training(from_plain, ends):
    tracker = train(Tracker(), from_plain, bug="no_zero_grad", ends=ends)
    assert [(values[VIOLATIONS], step) for values, step, _ in tracker.ours] == [(1, 101), (1, 129)]
    # What the training logs is what it logs without us.
    assert tracker.own == [(100 + number, {}) for number in range(1, 30, 2)]
    assert tracker.is_finished == ends


def test_where_the_training_counts_no_steps_only_the_end_is_logged(from_plain):
    tracker = train(Tracker(), from_plain, bug="no_zero_grad", is_counting=False)
    assert [(values[VIOLATIONS], step) for values, step, _ in tracker.ours] == [(1, None)]
    assert tracker.rows[-1] == tracker.ours[0]
    assert tracker.ours[0][2] == {"commit": False}


def test_a_violation_waits_for_the_first_step_that_is_logged(from_plain):
    tracker = train(Tracker(), from_plain, bug="replaced_model")
    assert [step for _, step, _ in tracker.ours] == [101, 129]


@pytest.mark.parametrize("options", [{"is_initialised": False}, {"watch": {"log": False}}], ids=str)
def test_nothing_is_logged_unasked(from_plain, options):
    assert train(Tracker(), from_plain, bug="no_zero_grad", **options).ours == []


def test_a_tracker_that_refuses_does_not_disturb_the_training(from_plain, caplog):
    tracker = train(Strict(), from_plain, bug="no_zero_grad")
    assert len(tracker.own) == 15
    said = caplog.text
    assert said.count("the trackers did not take the metrics: KeyError") == 1
    assert "1 critical in 30 steps" in said
