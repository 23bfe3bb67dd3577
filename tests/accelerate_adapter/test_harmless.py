"""Watching changes no number and leaves nothing behind."""

from __future__ import annotations

import os
import random
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn.modules import module as hooks
from traincheck_accelerate import watch

from tests.accelerate_adapter.conftest import forget
from tests.accelerate_adapter.loops import accelerated, parts, watching
from traincheck_plugin.errors import ConfigError, InvariantError
from traincheck_plugin.recorder.recorder import _active
from traincheck_plugin.trace.reader import open_run


def outcome(block, **training):
    """Train and return the losses, the weights and where the random numbers are then."""
    forget()
    random.seed(0)
    np.random.seed(0)
    losses, weights = accelerated(block, **training)
    return losses, weights, torch.rand(2).tolist(), random.getstate(), np.random.rand()


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"accumulate": 4},
        {"prepares_inside": True},
        {"mixed_precision": "bf16"},
        {"bug": "no_zero_grad"},
    ],
    ids=str,
)
def test_the_numbers_are_the_same(from_plain, tmp_path, training):
    expected = outcome(lambda accelerator: nullcontext(), **training)
    block, monitors = watching(invariants=from_plain, output_dir=tmp_path / "trace", log=False)
    found = outcome(block, **training)

    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())
    assert found[2:] == expected[2:]
    assert monitors[0].report.num_steps


def test_the_numbers_are_the_same_with_a_scaler(from_plain):
    def run(block):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-12)
        return outcome(block, mixed_precision="fp16", scaler=scaler)

    expected = run(lambda accelerator: nullcontext())
    found = run(watching(invariants=from_plain, log=False)[0])
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


def world(accelerator):
    """What watching may have changed, by identity."""
    optimizers = sys.modules["torch.optim.optimizer"]
    classes = (
        Accelerator,
        AcceleratedOptimizer,
        torch.optim.Optimizer,
        torch.optim.lr_scheduler.LRScheduler,
        torch.nn.Module,
        torch.Tensor,
        torch.utils.data.DataLoader,
        torch.amp.GradScaler,
    )
    return (
        {name: id(value) for name, value in vars(accelerator).items()},
        [len(accelerator._save_model_state_pre_hook), len(accelerator._load_model_state_pre_hook)],
        [{name: id(value) for name, value in vars(cls).items()} for cls in classes],
        [
            len(hooks._global_forward_hooks),
            len(hooks._global_forward_pre_hooks),
            len(optimizers._global_optimizer_pre_hooks),
            len(optimizers._global_optimizer_post_hooks),
            torch._C._len_torch_function_stack(),
        ],
        [id(torch.autograd.backward), id(torch.nn.utils.clip_grad_norm_), id(torch.save)],
        threading.active_count(),
        list(warnings.filters),
        dict(os.environ),
        set(_active),
    )


def interrupt(error):
    def on_batch(accelerator, number):
        if number == 3:
            raise error

    return on_batch


@pytest.mark.parametrize("error", [None, ValueError("lost"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"prepares_inside": True}], ids=str)
def test_nothing_is_left_behind(from_plain, tmp_path, error, options):
    accelerated(epochs=1)  # what torch and Accelerate set up on first use
    forget()
    worlds = []

    @contextmanager
    def block(accelerator):
        before = world(accelerator)
        try:
            with watch(
                accelerator, invariants=from_plain, output_dir=tmp_path / "trace", log=False
            ):
                assert world(accelerator) != before
                yield
        finally:
            worlds.append((before, world(accelerator)))

    expecting = nullcontext() if error is None else pytest.raises(type(error))
    on_batch = interrupt(error) if error is not None else lambda accelerator, number: None
    with expecting:
        accelerated(block, epochs=1, on_batch=on_batch, **options)
    before, after = worlds[0]
    if options:
        # What the training prepared is its own.
        assert after[0].keys() == before[0].keys()
    else:
        assert {k: v for k, v in after[0].items() if k != "step"} == {
            k: v for k, v in before[0].items() if k != "step"
        }
    assert after[1:] == before[1:]


def test_files_are_written_only_where_asked(from_plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    accelerated(watching(invariants=from_plain, log=False)[0], epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_block_may_be_entered_again(from_plain):
    accelerator = Accelerator(cpu=True)
    model, optimizer, _ = parts()
    model, optimizer = accelerator.prepare(model, optimizer)
    block = watch(accelerator, invariants=from_plain, log=False)
    for num_steps in (2, 3):
        with block as monitor:
            for _ in range(num_steps):
                accelerator.backward(model(torch.randn(4, 6)).sum())
                optimizer.step()
                optimizer.zero_grad()
        assert monitor.report.num_steps == num_steps
        assert not monitor.is_watching
    assert monitor.state_dict() == {"step": 5}


def test_the_switch_turns_it_off(from_plain, monkeypatch):
    monkeypatch.setenv("TRAINCHECK_DISABLE", "1")
    accelerator = Accelerator(cpu=True)
    before = world(accelerator)
    with watch(accelerator, invariants=from_plain) as monitor:
        assert world(accelerator) == before
        assert not monitor.is_watching
    assert monitor.report.violations == ()


def test_what_makes_no_sense_is_said_at_once(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ConfigError, match="expected an Accelerator, got a Linear"):
        watch(model)
    with pytest.raises(ConfigError, match="expected models and optimizers of torch, got a int"):
        watch(accelerator, 3)
    with pytest.raises(ConfigError, match="expected on_violation to be"):
        watch(accelerator, on_violation="ignore")

    before = world(accelerator)
    missing = watch(accelerator, invariants=tmp_path / "missing.json")
    with pytest.raises(InvariantError, match=r"missing\.json"), missing:
        pytest.fail("the block was entered")
    assert world(accelerator) == before


def test_given_models_are_watched_instead_of_the_prepared(tmp_path):
    accelerator = Accelerator(cpu=True)
    watched, other = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    held = [*watched.parameters(), *other.parameters()]
    watched, other, optimizer = accelerator.prepare(watched, other, torch.optim.SGD(held, lr=0.1))
    trace = tmp_path / "trace"
    options = {"parameters": "w*", "output_dir": trace, "log": False}
    with watch(accelerator, watched, optimizer, **options) as monitor:
        # The optimizer that steps, not the one that Accelerate puts around it.
        (known,) = monitor._session.recorder._tape.variables.optimizers()
        assert type(known) is torch.optim.SGD
        for _ in range(2):
            accelerator.backward(other(watched(torch.randn(4, 3))).sum())
            optimizer.step()
            optimizer.zero_grad()
    (rank,) = open_run(trace).ranks
    catalog = [window.catalog for window in rank.windows()][-1]
    assert {v.name for v in catalog.variables if v.kind == "parameter"} == {"weight"}
