"""What happens when a violation is found, and where training goes on."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from traincheck_accelerate import watch

from tests.accelerate_adapter.loops import accelerated, watching
from traincheck_plugin.errors import TrainingStopped, ViolationError

BROKEN_STEP = 1
"""Where gradients that are never cleared are first seen."""


@pytest.fixture
def train(from_plain):
    """Trains with a bug; the numbers of the batches and the monitor are its attributes."""

    def run(on_violation, **training):
        run.batches = []
        block, monitors = watching(invariants=from_plain, on_violation=on_violation)
        try:
            accelerated(
                block,
                bug="no_zero_grad",
                on_batch=lambda _, number: run.batches.append(number),
                **training,
            )
        finally:
            run.monitor = monitors[0]

    return run


def test_warn(train, caplog):
    train("warn")
    assert len(train.batches) == 30
    assert caplog.text.count("zero_grad was not called") == 1
    assert "1 critical in 30 steps" in caplog.text
    assert not train.monitor.should_stop


def test_stop_leaves_the_block_and_goes_on_after_it(train, caplog):
    train("stop")
    assert train.batches[-1] == BROKEN_STEP + 1
    assert train.monitor.should_stop
    assert not train.monitor.is_watching
    assert [d.first.step for d in train.monitor.report.diagnoses] == [BROKEN_STEP]
    assert "zero_grad was not called" in caplog.text
    assert TrainingStopped.__name__ not in caplog.text


@pytest.mark.parametrize("accumulate", [1, 4])
def test_raise_comes_before_the_next_step_ends(train, accumulate):
    with pytest.raises(ViolationError, match="zero_grad was not called"):
        train("raise", accumulate=accumulate)
    assert train.monitor.report.num_steps == BROKEN_STEP + 1
    assert train.batches[-1] <= (BROKEN_STEP + 1) * accumulate


def test_a_function_gets_the_diagnosis(train):
    found = []
    train(found.append)
    assert len(train.batches) == 30
    assert [d.severity for d in found] == ["critical"]


def test_what_a_function_raises_goes_into_the_training(train):
    def refuse(diagnosis):
        raise RuntimeError(diagnosis.severity)

    with pytest.raises(RuntimeError, match="critical"):
        train(refuse)


def test_ending_the_training_ends_the_watching_first(from_plain, caplog):
    caplog.set_level("INFO")
    accelerator = Accelerator(cpu=True)
    were_watching = []
    with watch(accelerator, invariants=from_plain) as monitor:
        state = accelerator.state
        destroy = state.destroy_process_group
        state.destroy_process_group = lambda: were_watching.append(monitor.is_watching) or destroy()
        accelerator.end_training()
        assert not monitor.is_watching
        assert "end_training" not in vars(accelerator)
        assert "backward" not in vars(accelerator)
    assert were_watching == [False]
    assert caplog.text.count("nothing was checked in 0 steps") == 1
