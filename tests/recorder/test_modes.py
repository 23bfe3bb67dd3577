"""In which mode modules are, and for which of them it matters."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.modes import Mode, ModeReader, acts


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout2d(0.1), True),
        (nn.AlphaDropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.BatchNorm1d(4), True),
        (nn.BatchNorm1d(4, track_running_stats=False), False),
        (nn.SyncBatchNorm(4), True),
        (nn.InstanceNorm1d(4), False),
        (nn.InstanceNorm1d(4, track_running_stats=True), True),
        (nn.LayerNorm(4), False),
        (nn.LSTM(4, 4, 2, dropout=0.1), True),
        (nn.LSTM(4, 4, 2), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.RReLU(), True),
        (nn.RReLU(0.1, 0.1), False),
        (nn.Linear(4, 4), False),
    ],
)
def test_modules_that_act_otherwise_in_training_are_known(module, expected):
    assert acts(module) is expected


def make_model():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_the_mode_of_a_model_is_told_with_the_parts_that_share_it():
    reader, model = ModeReader(), make_model()
    assert reader.of(model) == Mode(True, 2)
    # As where a frozen norm stays in eval mode.
    model[1].eval()
    assert reader.of(model) == Mode(True, 1)
    assert reader.of(model.eval()) == Mode(False, 2)
    assert reader.of(nn.Dropout(0.5)) == Mode(True, 1)
    assert reader.of(nn.Linear(4, 4)) == Mode(True, 0)


def test_models_are_not_kept():
    reader, model = ModeReader(), nn.Dropout(0.5)
    reader.of(model)
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


@pytest.mark.parametrize(
    ("plan", "expected"), [(LIFECYCLE, [(1, 2), (0, 2)]), (Plan.nothing(), [])]
)
def test_a_forward_without_gradients_tells_the_mode(plan, expected):
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(4, 4)).sum().backward()
        optimizer.step()
        with torch.no_grad():
            model(torch.randn(4, 4))
        with torch.inference_mode():
            model.eval()(torch.randn(4, 4))

    found = [
        (window.catalog.variables[int(frame.variables[0])].owner, *map(float, told))
        for window in record(train, plan).windows
        for frame in window.frames
        if window.kind(frame) == "evaluation"
        for told in [(frame.columns["value"][0], frame.columns["number"][0])]
    ]
    assert found == [("torch.nn.Sequential#0", *told) for told in expected]


def test_a_backward_tells_which_modules_act_otherwise():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model(torch.randn(4, 4)).sum().backward()
            optimizer.step()

    found = {
        window.catalog.variables[code].name: (value, number)
        for window in record(train, LIFECYCLE).windows
        for frame in window.frames
        if window.kind(frame) == "module" and "number" in frame.columns
        for code, value, number in zip(
            frame.variables.tolist(),
            frame.columns["value"].tolist(),
            frame.columns["number"].tolist(),
            strict=True,
        )
    }
    assert found == {"": (1, 0), "0": (1, 0), "1": (1, 1), "2": (1, 1)}
