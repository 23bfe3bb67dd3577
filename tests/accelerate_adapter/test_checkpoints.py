"""Checkpoints hold the step of the monitor, and load with and without watching."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from accelerate import Accelerator
from torch import nn
from traincheck_accelerate import watch

from tests.accelerate_adapter.conftest import forget
from tests.accelerate_adapter.loops import batches, parts
from tests.watched import ATTENTION, OPTIONS, watched_steps

FILE = "traincheck_0.json"


@pytest.fixture
def run(from_plain, tmp_path):
    """Trains some batches from a checkpoint to the next; returns the losses and the monitor."""

    def train(is_watched, num_batches, load=None, save=None, bug=None):
        forget()
        accelerator = Accelerator(cpu=True)
        model, optimizer, scheduler = parts()
        loader = batches(40)
        model, optimizer, scheduler, loader = accelerator.prepare(
            model, optimizer, scheduler, loader
        )
        block = nullcontext()
        if is_watched:
            block = watch(accelerator, invariants=from_plain, every_n_steps=1, log=False)
        losses = []
        with block as monitor:
            if load is not None:
                accelerator.load_state(str(tmp_path / load))
            for _, (inputs, labels) in zip(range(num_batches), loader, strict=False):
                loss = nn.functional.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                if bug is None:
                    optimizer.zero_grad()
                losses.append(loss.item())
            if save is not None:
                accelerator.save_state(str(tmp_path / save))
        return losses, monitor

    return train


@pytest.mark.parametrize("bug", [None, "no_zero_grad"])
def test_a_resumed_run_counts_on(run, tmp_path, bug):
    run(True, 6, save="first", bug=bug)
    assert json.loads((tmp_path / "first" / FILE).read_text()) == {"step": 6}
    _, monitor = run(True, 5, load="first", save="second", bug=bug)
    assert json.loads((tmp_path / "second" / FILE).read_text()) == {"step": 11}
    assert monitor.report.num_steps == 5
    assert [d.first.step for d in monitor.report.diagnoses] == ([7] if bug else [])
    assert monitor.report.problems == ()


@pytest.mark.parametrize("is_saving", [True, False])
@pytest.mark.parametrize("is_loading", [True, False])
def test_checkpoints_load_with_and_without_watching(run, tmp_path, caplog, is_saving, is_loading):
    run(is_saving, 6, save="first")
    assert (tmp_path / "first" / FILE).exists() == is_saving
    losses, monitor = run(is_loading, 5, load="first")
    assert losses == run(False, 5, load="first")[0]
    assert not [record for record in caplog.records if record.name == "traincheck"]
    if is_loading:
        assert monitor.state_dict() == {"step": 11 if is_saving else 5}
        assert monitor.report.diagnoses == ()


@pytest.mark.parametrize("content", ["{", "[]", '{"step": "six"}', '{"step": -1}'])
def test_a_damaged_file_stops_nothing(run, tmp_path, caplog, content):
    run(True, 6, save="first")
    (tmp_path / "first" / FILE).write_text(content)
    losses, monitor = run(True, 5, load="first")
    assert len(losses) == 5
    assert monitor.state_dict() == {"step": 5}
    said = caplog.text
    assert ("does not tell at which step it was made" in said) == (content == "{")


def test_a_checkpoint_within_a_window_of_accumulation(from_accumulating, tmp_path):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, scheduler, loader = accelerator.prepare(*parts(), batches())
    saved = []
    with watch(accelerator, invariants=from_accumulating, every_n_steps=1, log=False) as monitor:
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            accelerator.save_state(str(tmp_path))
            saved.append(json.loads((tmp_path / FILE).read_text())["step"])
    assert saved == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]
    assert monitor.report.diagnoses == ()


def test_with_the_default_budget_every_step_is_watched_after_a_load(tmp_path, monkeypatch):
    watched = watched_steps(monkeypatch)
    forget()
    accelerator = Accelerator(cpu=True)
    model, optimizer, _, loader = accelerator.prepare(*parts(), batches(40))
    with watch(accelerator, **OPTIONS) as monitor:
        for step, (inputs, labels) in enumerate(loader):
            if step == 10:
                accelerator.save_state(str(tmp_path))
            elif step == 25:
                accelerator.load_state(str(tmp_path))
            accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
            optimizer.step()
            optimizer.zero_grad()
    assert watched == [*range(ATTENTION), *range(10, 10 + ATTENTION)]
    assert monitor.state_dict() == {"step": 25}
