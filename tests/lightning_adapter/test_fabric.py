"""Fabric calls two hooks by itself; loops may call others, or use the `watch` block."""

from __future__ import annotations

import subprocess
import sys

import lightning_fabric
import pytest
import torch
from lightning.fabric import Fabric
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import IGNORED, Classifier, loader, network
from traincheck_plugin import TrainingStopped, ViolationError
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.trace.reader import open_run

pytestmark = IGNORED


def make(callback=None, *, frozen=False, kind=Fabric, apart=False, **options):
    torch.manual_seed(0)
    callbacks = [callback] if callback is not None else []
    fabric = kind(accelerator="cpu", devices=1, callbacks=callbacks, **options)
    fabric.launch()
    model = network()
    if frozen:
        model[:2].requires_grad_(False)
    held = model[:2] if frozen else model
    optimizer = torch.optim.AdamW(held.parameters(), lr=0.01)
    if apart:
        return fabric, fabric.setup_module(model), fabric.setup_optimizers(optimizer)
    return fabric, *fabric.setup(model, optimizer)


def train(fabric, model, optimizer, *, calls=True, num_epochs=2):
    losses = []
    if calls:
        fabric.call("on_train_start")
    for _ in range(num_epochs):
        for index, (x, y) in enumerate(fabric.setup_dataloaders(loader())):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.item())
            if calls:
                fabric.call("on_train_batch_end", loss=loss, batch=(x, y), batch_idx=index)
    if calls:
        fabric.call("on_train_end")
    return losses


@pytest.mark.parametrize("kind", [Fabric, lightning_fabric.Fabric])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_healthy_loop_is_the_same_and_silent(kind, precision):
    expected = train(*make(kind=kind, precision=precision))
    callback = TrainCheckCallback(invariants="default", every_n_steps=1, log=False)
    assert train(*make(callback, kind=kind, precision=precision)) == expected
    report = callback.report
    assert not report.diagnoses
    assert not report.problems
    assert report.totals.num_passed >= 4
    assert report.num_steps == report.result.num_steps == 20


def test_the_names_of_variables_are_those_without_fabric(plain_reference, tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    train(*make(callback))
    (run,) = [open_run(tmp_path / "trace")]
    names = {v.name for w in run.ranks[0].windows() for v in w.catalog.variables}
    assert {"0.weight", "3.bias"} <= names
    assert infer([run]).invariants


@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_a_bug_is_found_even_if_the_loop_calls_nothing(calls, apart):
    callback = TrainCheckCallback(invariants="default", log=False)
    train(*make(callback, frozen=True, apart=apart), calls=calls)
    assert any("updated 0 of" in v.message for v in callback.report.violations)
    assert callback._monitor.is_watching != calls
    callback._end()


def test_raise_and_the_end_of_a_loop_that_fails():
    callback = TrainCheckCallback(invariants="default", on_violation="raise", log=False)
    fabric, *rest = make(callback, frozen=True)
    with pytest.raises(ViolationError) as caught:
        train(fabric, *rest)
    fabric.call("on_exception", exception=caught.value)
    assert callback.report.violations
    assert callback.report.num_steps == 1


def test_stop_leaves_the_watch_block():
    callback = TrainCheckCallback(invariants="default", on_violation="stop", log=False)
    setup = make(callback, frozen=True)
    losses = []
    with callback.watch() as monitor:
        losses = train(*setup, calls=False)
    assert not losses  # it did not return
    assert monitor.report.num_steps <= 2


def test_without_the_block_stop_goes_up_as_an_exception():
    callback = TrainCheckCallback(invariants="default", on_violation="stop", log=False)
    fabric, *rest = make(callback, frozen=True)
    with pytest.raises(TrainingStopped):
        train(fabric, *rest)
    fabric.call("on_exception", TrainingStopped())
    assert callback.report.num_steps == 1


def test_the_watch_block_alone(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    setup = make()
    with callback.watch():
        train(*setup)
    assert callback.report.num_steps == 20


def test_the_state_goes_into_a_checkpoint_of_fabric(tmp_path):
    callback = TrainCheckCallback(invariants="default", log=False)
    fabric, model, optimizer = make(callback)
    train(fabric, model, optimizer)
    fabric.save(tmp_path / "state.ckpt", {"model": model, "traincheck": callback})

    callback = TrainCheckCallback(invariants="default", log=False)
    fabric, model, optimizer = make(callback)
    fabric.load(tmp_path / "state.ckpt", {"model": model, "traincheck": callback})
    train(fabric, model, optimizer)
    assert callback.state_dict() == {"step": 40}


def test_a_lightning_module_under_fabric():
    module = Classifier()
    callback = TrainCheckCallback(invariants="default", every_n_steps=1, log=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[callback])
    model, optimizer = fabric.setup(module, module.configure_optimizers())
    model.mark_forward_method("loss_of")
    for batch in loader():
        optimizer.zero_grad()
        fabric.backward(model.loss_of(batch))
        optimizer.step()
    callback.on_train_end()
    assert not callback.report.diagnoses
    assert callback.report.num_steps == 10


UNENDED = """
import torch
from lightning.fabric import Fabric
from traincheck_lightning import TrainCheckCallback
fabric = Fabric(accelerator="cpu", devices=1, callbacks=[TrainCheckCallback(output_dir="trace")])
model = torch.nn.Linear(2, 1)
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
for step in range(4):
    optimizer.zero_grad()
    fabric.backward(model(torch.ones(2, 2)).sum())
    optimizer.step()
if {fails}:
    raise ValueError("lost")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fails", "how"), [(False, "finished"), (True, "exception")])
def test_at_the_end_of_the_process_the_trace_is_complete(tmp_path, fails, how):
    program = UNENDED.format(fails=fails)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "traincheck-infer -f" in done.stderr
    assert open_run(tmp_path / "trace").ranks[0].end.outcome.how == how
