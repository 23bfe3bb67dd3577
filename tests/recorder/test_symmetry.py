"""Weights whose rows are all alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.symmetry import AT_STEP, EARLY, SymmetryReader, shared
from traincheck_plugin.recorder.tables import Tensors


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(3, 4), True),
        (torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16), True),
        (torch.arange(4.0).expand(3, 4), True),
        (torch.arange(12.0).view(3, 4), False),
        (torch.zeros(3, 4).index_fill(0, torch.tensor([2]), 1.0), False),
        # A single row, rows of a single number, and what are no weights.
        (torch.zeros(1, 4), False),
        (torch.zeros(4), False),
        (torch.zeros(4, 1, 1), False),
        (torch.zeros(3, 4, dtype=torch.int64), False),
        (torch.zeros(3, 4, dtype=torch.complex64), False),
        (torch.zeros(3, 4).to_sparse(), False),
        (torch.zeros(3, 4, device="meta"), False),
        (torch.full((3, 4), torch.nan), False),
    ],
)
def test_rows_that_are_alike_are_found(tensor, expected):
    reader = SymmetryReader(DeviceReadings())
    other = torch.rand(2, 2)
    table = Tensors([(0, other), (1, tensor), (2, tensor)])
    optimizer = torch.optim.SGD([nn.Parameter(other)])
    assert reader.of(table, optimizer).tolist() == [False, expected, expected]


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        (torch.full((3, 4), 0.5), True),
        (torch.arange(4.0).expand(3, 4), True),
        # A last layer that begins with zeros, and what no gradient has reached yet.
        (torch.arange(12.0).view(3, 4), False),
        (torch.zeros(3, 4), False),
        (torch.zeros(3, 4).to_sparse(), False),
        (None, False),
    ],
)
def test_at_first_their_gradients_have_to_be_alike(gradient, expected):
    reader = SymmetryReader(DeviceReadings())
    weight, other = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.rand(3, 4))
    weight.grad, other.grad = gradient, torch.ones(3, 4)
    table = Tensors([(0, other), (1, weight)])
    optimizer = torch.optim.SGD([weight])
    due = [
        reader.of(table, optimizer).tolist() for _ in range(AT_STEP + 2) if reader.is_due(optimizer)
    ]
    assert due == [[False, expected], [False, True]]


def train(num_steps=AT_STEP + 2, constant=True):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    if constant:
        nn.init.constant_(model[0].weight, 0.1)
        nn.init.zeros_(model[0].bias)
        nn.init.constant_(model[2].weight, 0.1)
    # A last layer may begin with zeros.
    nn.init.zeros_(model[2].weight[1:])
    for lr in (0.1, 0.2):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for _ in range(num_steps):
            optimizer.zero_grad()
            (model(torch.randn(5, 3)) * torch.tensor([1.0, 2.0])).sum().backward()
            optimizer.step()


def told(recording):
    return [
        [
            window.catalog.variables[code].name
            for code in frame.variables[frame.columns["alike"]].tolist()
        ]
        for window in recording.windows
        for frame in window.frames
        if "alike" in frame.columns
    ]


def test_they_are_told_twice_for_each_optimizer():
    assert told(record(train, LIFECYCLE)) == [["0.weight"]] * 4
    assert told(record(lambda: train(constant=False), LIFECYCLE)) == [[]] * 4
    assert told(record(lambda: train(AT_STEP - 1), LIFECYCLE)) == [["0.weight"]] * 2
    assert told(record(lambda: train(EARLY - 1), LIFECYCLE)) == []
    assert told(record(train, Plan.nothing())) == []


def test_parameters_that_are_one_in_memory():
    def parameter(values, has_gradient=True):
        made = nn.Parameter(values)
        made.grad = torch.ones_like(values) if has_gradient else None
        return made

    memory = torch.zeros(4, 3)
    others = [
        parameter(memory[1:]),
        parameter(torch.zeros(4, 3)),
        parameter(torch.zeros(0)),
        parameter(torch.zeros(0)),
        parameter(torch.zeros(4, 3, device="meta")),
        parameter(torch.zeros(4, 3, device="meta")),
    ]
    assert shared([parameter(memory), parameter(memory.T), *others]).tolist() == [
        *[True] * 2,
        *[False] * 6,
    ]
    assert not shared([parameter(memory), parameter(memory, False), *others]).any()
    assert shared([]).tolist() == []


@pytest.mark.parametrize("is_one", [False, True])
def test_weights_that_are_tied_by_their_data(is_one):
    def train():
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        if is_one:
            model[2].weight = model[0].weight
        else:
            model[2].weight.data = model[0].weight.data
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(AT_STEP):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).sum().backward()
            optimizer.step()

    recording = record(train, LIFECYCLE)
    names = [
        {recording.windows[0].catalog.variables[code].name for code in codes.tolist()}
        for window in recording.windows
        for frame in window.frames
        if "shared" in frame.columns
        for codes in [frame.variables[frame.columns["shared"]]]
    ]
    assert names == [set() if is_one else {"0.weight", "2.weight"}] * 2
