"""What a gradient scaler does to gradients is context, and a constant factor of a loss is noted."""

from __future__ import annotations

import pytest
import torch

from tests.recorder.recording import CALLS_ONLY, batches, make_model, record
from traincheck_plugin.recorder.loss_graph import constant_factor


def _train(scaler: torch.amp.GradScaler, *, unscales: bool, clips: bool = True) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(2):
        optimizer.zero_grad()
        scaler.scale(model(batch).mean()).backward()
        if unscales:
            scaler.unscale_(optimizer)
        if clips:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize(
    ("enabled", "unscales", "clip", "step"),
    [
        (True, True, "unscaled", "unscaled"),
        (True, False, "scaled", "unscaled"),
        (False, True, "disabled", "disabled"),
    ],
)
def test_what_clipping_and_the_step_meet(
    enabled: bool, unscales: bool, clip: str, step: str
) -> None:
    def train() -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=enabled)
        _train(scaler, unscales=unscales)

    recording = record(train, CALLS_ONLY)
    assert [call.context.scaling for call in recording.of_role("clip")] == [clip] * 2
    assert [call.context.scaling for call in recording.of_role("step")] == [step] * 2
    assert {call.context.scaling for call in recording.of_role("zero_grad")} == {""}


def test_a_step_past_the_scaler_meets_scaled_gradients() -> None:
    def train() -> None:
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for batch in batches(2):
            scaler.scale(model(batch).mean()).backward()
            optimizer.step()

    steps = record(train, CALLS_ONLY).of_role("step")
    assert [call.context.scaling for call in steps] == ["scaled", "scaled"]


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_calls_of_scalers_and_schedulers_name_the_optimizer() -> None:
    def train() -> None:
        model = make_model()
        optimizers = [torch.optim.SGD([p], lr=0.1) for p in model.parameters()]
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizers[1], 0.9)
        chained = torch.optim.lr_scheduler.ChainedScheduler([scheduler])
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(batches(1)[0]).mean()).backward()
        scaler.step(optimizers[1])
        scaler.update()
        scheduler.step()
        scheduler.step(3)
        chained.step()

    recording = record(train, CALLS_ONLY)
    made = [call for call in recording.of_role("construct") if "lr_scheduler" in call.name]
    assert [call.name.split(".")[-2] for call in made] == ["ExponentialLR", "ChainedScheduler"]
    about = [*made, *recording.of_role("scheduler")]
    about += [c for c in recording.of_role("scaler") if not c.name.endswith("update")]
    assert len(about) == 7
    for call in about:
        named = [item.value for item in call.inputs if item.path == "optimizer"]
        assert named == ["torch.optim.SGD#1"]
    steps = recording.named("torch.optim.lr_scheduler.LRScheduler.step")
    assert ["1" in [item.path for item in call.inputs] for call in steps] == [False, True, False]


@pytest.mark.parametrize(
    ("scaled", "factor"),
    [
        (lambda loss: loss, None),
        (lambda loss: loss / 4, "0.25"),
        (lambda loss: 0.5 * loss / 4, "0.125"),
        (lambda loss: (loss / 4).half(), "0.25"),
        (lambda loss: loss * torch.tensor(3.0), None),
        (lambda loss: (loss / 4) * torch.tensor(65536.0), "0.25"),
        (lambda loss: loss / torch.tensor(57.0), "nan"),
        (lambda loss: loss / 4 + loss / 4, None),
    ],
)
def test_a_backward_tells_the_constant_that_its_loss_was_multiplied_by(scaled, factor) -> None:
    def train() -> None:
        model = make_model()
        scaled(model(batches(1)[0]).mean()).backward()

    (backward,) = record(train, CALLS_ONLY).of_role("backward")
    assert next((i.value for i in backward.inputs if i.path == "factor"), None) == factor
    assert backward.inputs[0].dtype is not None


def test_reading_the_factor_unpacks_nothing() -> None:
    unpacked = []

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        unpacked.append(tensor)
        return tensor

    weight = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        loss = weight.sum() * torch.tensor(2.0, dtype=torch.float64) / 4
    assert constant_factor(loss.grad_fn)[0] == 0.25
    assert not unpacked


def test_a_backward_tells_that_it_goes_through_a_loss_again() -> None:
    def train() -> None:
        model = make_model()
        outputs = model(batches(1)[0])
        loss = outputs.mean()
        loss.backward(retain_graph=True)
        (loss / 2).backward(retain_graph=True)
        (2 * outputs).mean().backward(retain_graph=True)
        for row in range(2):
            outputs.backward(gradient=torch.full_like(outputs, row), retain_graph=True)

    backwards = record(train, CALLS_ONLY).of_role("backward")
    again = [any(item.path == "again" for item in call.inputs) for call in backwards]
    assert again == [False, True, False, False, False]
