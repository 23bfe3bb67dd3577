"""Modules that a model has under several names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import aliases as aliases_module
from traincheck_plugin.recorder.aliases import Alias, AliasReader


class Model(nn.Module):
    def __init__(self, *, shares):
        super().__init__()
        activation = nn.ReLU()
        blocks = [nn.Sequential(nn.Linear(4, 4), activation) for _ in range(3)]
        self.blocks = nn.ModuleList(blocks[:1] * 3 if shares else blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.sum()


def test_the_further_names_of_modules_with_parameters_are_told():
    reader = AliasReader()
    sequential = "torch.nn.Sequential"
    expected = [Alias("blocks.1", sequential), Alias("blocks.2", sequential)]
    model = Model(shares=True)
    assert reader.of(model) == expected
    assert reader.of(model) is reader.of(model)
    # An activation that is used again is no matter, nor is a tied weight.
    separate = Model(shares=False)
    separate.blocks[1][0].weight = separate.blocks[0][0].weight
    assert reader.of(separate) == []


def test_of_many_some_are_told(monkeypatch):
    monkeypatch.setattr(aliases_module, "MAX_ALIASES", 1)
    assert len(AliasReader().of(Model(shares=True))) == 1


@pytest.mark.parametrize(
    ("shares", "plan", "expected"),
    [
        (True, LIFECYCLE, [["blocks.1", "blocks.2"]] * 2),
        (False, LIFECYCLE, []),
        (True, Plan.nothing(), []),
    ],
)
def test_a_forward_in_training_tells_them(shares, plan, expected):
    def train():
        model = Model(shares=shares)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.randn(2, 4)).backward()
            optimizer.step()
            with torch.no_grad():
                model(torch.randn(2, 4))

    found = [
        [window.catalog.variables[code].name for code in frame.variables.tolist()]
        for window in record(train, plan).windows
        for frame in window.frames
        if window.kind(frame) == "alias"
    ]
    assert found == expected
