"""What modules that treat sequences are told to have been given."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from tests.recorder.recording import record
from traincheck_plugin.plan import Plan


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(4, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2)
        layer = nn.TransformerEncoderLayer(6, 2, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.cell = nn.GRUCell(6, 6)

    def forward(self, values, packed=None):
        values, _ = self.first(values)
        values = values + self.attention(values, values, values)[0]
        values = self.encoder(values)
        values = values + self.cell(values[0])
        values, _ = self.attention(values[0], values[0], values[0])
        if packed is not None:
            values = values.sum() + self.first(packed)[0].data.sum()
        return values.sum()


def _told(plan):
    model = Model()
    values = torch.randn(5, 3, 4)
    packed = pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])

    def train():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(values, packed).backward()
        optimizer.step()
        with torch.no_grad():
            model(values)

    recording = record(train, plan)
    return [
        (variable.name, variable.type, int(length), int(number))
        for window in recording.windows
        for frame in window.frames
        if window.kind(frame) == "sequence"
        for variable, length, number in zip(
            (window.catalog.variables[code] for code in frame.variables.tolist()),
            frame.columns["length"].tolist(),
            frame.columns["number"].tolist(),
            strict=True,
        )
    ]


def test_a_forward_tells_the_axes_of_what_its_modules_are_given():
    attention = "torch.nn.MultiheadAttention"
    assert _told(Plan.full()) == [
        ("first", "torch.nn.LSTM", 3, 5),
        ("attention", attention, 5, 3),
        ("encoder.layers.0.self_attn", attention, 5, 3),
        ("encoder.layers.1.self_attn", attention, 5, 3),
        # Two dimensions are one sequence.
        ("attention", attention, 3, 0),
    ]


def test_nothing_is_told_that_nobody_asks_for():
    assert _told(Plan.nothing()) == []
