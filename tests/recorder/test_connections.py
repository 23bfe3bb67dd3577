"""From which parts of a model the others are given what they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.recorder.recording import CALLS_ONLY, record
from traincheck_plugin.recorder import connections as connections_module
from traincheck_plugin.recorder.connections import MAX_SOURCES, connections
from traincheck_plugin.recorder.operation_settings import nodes_of
from traincheck_plugin.recorder.probes.backward import MAX_CONNECTED


class Mixer(nn.Module):
    """Mixes pixels, then channels, and arranges what it has as it is told."""

    def __init__(self, arrange=lambda x: x, between=lambda x: x):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.offset = nn.Parameter(torch.zeros(4))
        self.last = nn.Linear(4, 4)
        self.arrange = arrange
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.norm(self.arrange(self.first(x)) + self.offset)))


def told(model, values=None, **options):
    loss = model(torch.randn(2, 1, 6, 6) if values is None else values).sum()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return connections(nodes_of(loss.grad_fn) or [], options.get("names", names)).split()


def test_parts_are_given_what_others_return():
    assert told(Mixer(lambda x: x.permute(0, 2, 3, 1))) == [
        "<last:sum",
        "last<norm",
        "norm<offset",
        "offset<first:permute(0,2,3,1)",
    ]


@pytest.mark.parametrize(
    ("arrange", "way"),
    [
        (lambda x: x, ""),
        (lambda x: x.reshape(-1, 4), ""),
        (lambda x: x.transpose(-1, 1), ":transpose(1,3)"),
        (lambda x: x.transpose(1, -1), ":transpose(1,3)"),
        (lambda x: x.permute(0, -2, -1, 1), ":permute(0,2,3,1)"),
        (lambda x: x.flip(0), ":flip(0)"),
        (lambda x: x.roll(1, -1), ":roll(3)"),
        (lambda x: x[torch.tensor([1, 0])], ":index()"),
        (lambda x: x.index_select(0, torch.tensor([1, 0])), ":index_select(0)"),
        (lambda x: x.gather(1, torch.zeros(2, 4, 4, 4, dtype=torch.int64)), ":gather(1)"),
        (lambda x: x.relu().transpose(1, 3).exp(), ":relu:transpose(1,3):exp"),
        (lambda x: x.flatten(1).t().reshape(2, 4, 4, 4), ":transpose(0,1)"),
        (lambda x: x.to(torch.float64).float().clone().contiguous(), ""),
    ],
)
def test_what_is_between_them_is_told_with_its_axes(arrange, way):
    assert f"offset<first{way}" in told(Mixer(arrange))


def test_a_shortest_way_is_told_and_all_next_parts():
    skipping = Mixer(lambda x: x.transpose(1, 3))
    kept = []
    skipping.first.register_forward_hook(lambda module, args, output: kept.append(output))
    skipping.between = lambda x: x + kept[-1].transpose(1, 3).tanh()
    assert {"last<norm:add", "last<first:transpose(1,3):tanh:add"} <= set(told(skipping))


def test_what_is_detached_and_frozen_is_left_out():
    assert told(Mixer(between=lambda x: x.detach())) == ["<last:sum"]
    model = Mixer(lambda x: x.transpose(1, 3))
    model.norm.requires_grad_(False)
    assert "last<offset:native_layer_norm" in told(model)
    assert told(model, names={}) == []


def test_of_parts_that_run_often_the_first_uses_are_told():
    model = nn.LSTM(4, 4)
    outputs = {
        length: told(_Wrapped(model), torch.randn(length, 2, 4, requires_grad=True))
        for length in (4, 40)
    }
    assert outputs[4] == outputs[40]
    assert len(outputs[4]) <= 4 * MAX_SOURCES


class _Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def test_a_residual_stream_tells_its_next_sources():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(MAX_SOURCES + 5))

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return x

    several = told(Stream(), torch.randn(2, 3))
    before_last = [one for one in several if one.startswith(f"blocks.{MAX_SOURCES + 4}<")]
    assert len(before_last) == MAX_SOURCES + 1
    assert f"blocks.{MAX_SOURCES + 4}<*" in before_last
    assert "blocks.3<*" not in several


def test_of_many_parts_nothing_is_told(monkeypatch):
    monkeypatch.setattr(connections_module, "MAX_PARTS", 3)
    assert told(Mixer(lambda x: x.transpose(1, 3))) == []


def test_the_first_steps_of_each_loss_tell_them():
    model = Mixer(lambda x: x.transpose(1, 3))

    def train():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(MAX_CONNECTED + 3):
            output = model(torch.randn(2, 1, 6, 6))
            (output.sum() if step < MAX_CONNECTED + 2 else output.exp().sum()).backward()
            optimizer.step()

    calls = record(train, CALLS_ONLY).of_role("backward")
    found = ["connections" in {item.path for item in call.inputs} for call in calls]
    assert all(found[:MAX_CONNECTED])
    assert found[-2:] == [False, True]
