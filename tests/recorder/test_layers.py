"""The layers in the graph of a loss, and to the inputs of which gradients go."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.recorder.recording import CALLS_ONLY, record
from traincheck_plugin.recorder import layers as layers_module
from traincheck_plugin.recorder.layers import layers
from traincheck_plugin.recorder.operation_settings import nodes_of
from traincheck_plugin.vocabulary import ENTRY


class Coder(nn.Module):
    """Rounds what its first part gives, with gradients that pass that by or not."""

    def __init__(self, *, passes=True, is_flat=False):
        super().__init__()
        self.first = nn.Conv1d(1, 4, 3, bias=False)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 1, bias=False)
        self.passes = passes
        self.is_flat = is_flat

    def forward(self, x):
        code = self.first(x)
        rounded = code.detach().round()
        given = code + (rounded - code).detach() if self.passes else rounded
        if self.is_flat:
            given = given.flatten(0, 1)
        return self.third(self.second(given)).sum() + (code - rounded).pow(2).mean()


def told(model, values=None, **options):
    loss = model(torch.randn(2, 1, 8) if values is None else values)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return layers(nodes_of(loss.grad_fn) or (), options.get("names", names))


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("passes", [True, False])
def test_it_is_told_where_gradients_end(passes, is_flat):
    model = Coder(passes=passes, is_flat=is_flat)
    second = "second.weight" if passes else f"{ENTRY}second.weight"
    assert told(model).split() == sorted([f"{ENTRY}first.weight", second, "third.weight"])


def test_what_the_input_needs_is_no_end():
    assert "first.weight" in told(Coder(), torch.randn(2, 1, 8, requires_grad=True)).split()


def test_autocast_hides_nothing():
    model = Coder(passes=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert f"{ENTRY}second.weight" in told(model).split()


def test_frozen_weights_and_unknown_ones_are_left_out():
    model = Coder()
    model.second.weight.requires_grad_(False)
    assert told(model).split() == [f"{ENTRY}first.weight", "third.weight"]
    assert told(model, names={}) == ""


def test_of_many_layers_nothing_is_told(monkeypatch):
    monkeypatch.setattr(layers_module, "MAX_LAYERS", 2)
    assert told(Coder()) == ""


def test_each_backward_tells_its_layers():
    model = Coder(passes=False)

    def train():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 1, 8)).backward()
        optimizer.step()
        data = torch.randn(2, 1, 8, requires_grad=True)
        checkpoint(model, data, use_reentrant=True).backward()

    calls = record(train, CALLS_ONLY).of_role("backward")
    found = [next((i.value for i in call.inputs if i.path == "layers"), None) for call in calls[:2]]
    assert found[0] == f"{ENTRY}first.weight {ENTRY}second.weight third.weight"
    assert found[1] is None
