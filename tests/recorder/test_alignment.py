"""Where targets of losses are among the inputs, against a naive reference, on the host and not."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.recorder.recording import record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.alignment import (
    MAX_GIVEN,
    MAX_PAIRS,
    MIN_DISTINCT,
    MIN_KNOWN,
    MIN_SHARE,
    Alignments,
)
from traincheck_plugin.recorder.loss_graph import Target, operations, targets
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.vocabulary import NOWHERE


def lags(target, *given_to_models, ignored=None, host="cpu"):
    readings = DeviceReadings()
    alignments = Alignments(readings, host)
    for number, values in enumerate(given_to_models):
        alignments.give("Net#0", [(str(number), values)])
    _, found = alignments.of([Target("nll_loss", target, ignored)])
    readings.resolve(readings.ticket())
    return found.tolist()


def naive(target, values, ignored):
    """Return the lag of a small target, comparing every element with every other."""
    rows, length, width = len(values), len(target[0]), len(values[0])
    known = [
        (row, place)
        for place in range(max(1, length - 1))
        for row in range(rows)
        if target[row][place] != ignored
        and (length == 1 or target[row][place] != target[row][place + 1])
    ]
    distinct = {target[row][place] for row, place in known}
    if len(known) < MIN_KNOWN or len(distinct) < MIN_DISTINCT:
        return math.nan
    fits = []
    for lag in range(-length, width):
        there = [(row, place) for row, place in known if 0 <= place + lag < width]
        same = sum(target[row][place] == values[row][place + lag] for row, place in there)
        if len(there) >= max(MIN_KNOWN, len(known) / 2) and same >= MIN_SHARE * len(there):
            fits.append(lag)
    return float(min(fits, key=lambda lag: (abs(lag), -lag))) if fits else NOWHERE


@given(
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(-4, 4),
    st.integers(1, 9),
    st.integers(0, 1000),
    st.sampled_from(["cpu", "none"]),
)
def test_the_lag_is_where_the_same_is_found(rows, length, shift, symbols, seed, host):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(symbols, (rows, length + 8), generator=generator)
    values, target = text[:, 4 : 4 + length], text[:, 4 + shift : 4 + shift + length].clone()
    target[torch.rand(target.shape, generator=generator) < 0.2] = -100

    # Time may come first as well, which is another question where both dimensions fit.
    [found] = lags(target.flatten(), values[None].expand(1, -1, -1).flatten(0, 1), ignored=-100,
                   host=host)  # fmt: skip

    expected = [naive(target.tolist(), values.tolist(), -100)]
    turned = target.flatten().reshape(-1, length).T.tolist()
    expected.append(naive(turned, values.T.tolist(), -100))
    known = [lag for lag in expected if not math.isnan(lag)]
    finite = [lag for lag in expected if math.isfinite(lag)]
    assert found == (finite or known or [math.nan])[0] or (math.isnan(found) and not known)


def test_time_may_come_first_and_a_series_may_be_one_of_several():
    text = torch.randint(50, (12, 33))
    assert lags(text[:, 1:].T.reshape(-1), text[:, :-1].T) == [1]
    waves = torch.randn(32, 30, 3)
    assert lags(waves[:, 20:24, 1], waves[:, :20]) == [NOWHERE]
    assert lags(waves[:, 18:22, 1], waves[:, :20]) == [18]
    assert lags(waves[:, 18:22], waves[:, :20]) == [3 * 18]


def test_padding_and_constants_say_nothing():
    text = torch.randint(1, 50, (8, 40))
    text[:, 15:] = 0
    assert lags(text[:, 1:], text[:, :-1]) == [1]
    text[:, 1:] = 0
    assert math.isnan(lags(text[:, 1:], text[:, :-1])[0])
    assert math.isnan(lags(torch.arange(4), torch.arange(4))[0])


@pytest.mark.parametrize("host", ["cpu", "none"])
def test_targets_among_the_inputs_are_left_out_where_they_tell_what_does_not_count(host):
    tokens = torch.arange(60).reshape(3, 20) % 7
    labels = functional.pad(tokens[:, 1:], (0, 1), value=-100)
    target = functional.pad(labels[:, 1:], (0, 1), value=-100)
    shifted_twice, itself = lags(target, tokens, labels, ignored=-100, host=host)
    assert shifted_twice == 2
    assert math.isnan(itself)
    # A class that does not count may be in any input, as padding is.
    assert lags(tokens[:, 1:], tokens, ignored=0, host=host) == [1]


def test_what_is_not_compared():
    text = torch.randint(50, (8, 40))
    weight = torch.randn(8, 40, requires_grad=True)
    assert lags(text, text.float(), text.bool(), weight, torch.zeros(0), torch.tensor(1)) == []
    [unknown] = lags(text, torch.randint(50, (8, 1 << 15)))
    assert math.isnan(unknown)
    assert lags(text, text.to(torch.int32)) == [0]
    found = lags(text, *[text] * 2 * MAX_GIVEN)
    assert len(found) == MAX_GIVEN
    assert found[:MAX_PAIRS] == [0] * MAX_PAIRS
    assert all(map(math.isnan, found[MAX_PAIRS:]))


def test_the_targets_of_losses():
    outputs = nn.Linear(3, 4)(torch.randn(5, 3))
    labels, numbers = torch.tensor([0, 1, 2, 3, 0]), torch.randn(5, 4)
    soft = numbers.softmax(1)

    def of(loss):
        return [
            (target.operation, target.values.tolist(), target.ignored)
            for target in targets(operations(loss.grad_fn))
        ]

    assert of(functional.cross_entropy(outputs, labels)) == [("nll_loss", labels.tolist(), -100)]
    assert of(functional.cross_entropy(outputs, labels, ignore_index=7)) == [
        ("nll_loss", labels.tolist(), 7)
    ]
    for loss in (functional.mse_loss, functional.smooth_l1_loss, functional.huber_loss):
        expected = [(loss.__name__, numbers.tolist(), None)]
        assert of(loss(outputs, numbers)) == expected
        # Whichever is which.
        assert of(loss(numbers, outputs)) == expected
        assert of(loss(outputs, outputs * 2)) == []
    [found] = of(functional.binary_cross_entropy_with_logits(outputs, soft))
    assert found[1:] == (soft.tolist(), None)
    picked = outputs.log_softmax(1).gather(1, labels[:, None]).mean()
    assert of(picked) == [("gather", labels[:, None].tolist(), None)]
    assert of((outputs - numbers).square().mean()) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"reduction": "sum"}, False),
        ({"label_smoothing": 0.1}, False),
        ({"reduction": "none"}, True),
        ({"weight": torch.ones(4)}, True),
    ],
)
def test_whether_elements_may_count_otherwise(options, expected):
    outputs = nn.Linear(3, 4)(torch.randn(5, 3))
    loss = functional.cross_entropy(outputs, torch.tensor([0, 1, 2, 3, 0]), **options)
    [target] = targets(operations(loss.sum().grad_fn))
    assert target.is_weighted is expected


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_frames_tell_it_at_the_begin_of_a_backward_and_nothing_is_kept():
    kept = []

    def train():
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            text = torch.randint(50, (4, 31))
            tokens = text[:, :-1].clone()
            kept.append(weakref.ref(tokens))
            optimizer.zero_grad()
            for share in (1, 2):
                loss = functional.cross_entropy(model(tokens).flatten(0, 1), text[:, 1:].flatten())
                (loss / share).backward()
            optimizer.step()
            del loss, tokens
            gc.collect()
            assert kept[-1]() is None

    recording = record(train, Plan.full())

    backwards = recording.of_role("backward")
    assert len(backwards) == 6
    for call in backwards:
        [(phase, frame)] = recording.frames(call, "target").items()
        assert phase == "begin"
        [(name, row)] = recording.rows(frame).items()
        assert (name, row["value"]) == ("0", 1)
        assert row["owner"].endswith("Model#0")
        [code] = frame.variables
        assert recording.windows[0].catalog.variables[int(code)].type == "nll_loss"


@pytest.mark.parametrize("hooks", [False, True])
def test_what_the_graph_saves_elsewhere_is_left_alone(hooks):
    def train():
        model = Model()
        text = torch.randint(50, (4, 31))
        with torch.autograd.graph.save_on_cpu() if hooks else torch.enable_grad():
            loss = functional.cross_entropy(
                model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()
            )
        loss.backward()

    recording = record(train, Plan.full())

    [call] = recording.of_role("backward")
    assert bool(recording.frames(call, "target")) != hooks
