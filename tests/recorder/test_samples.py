"""Which target each sample has, as keys and numbers, on the host and not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import samples as samples_module
from traincheck_plugin.recorder.arguments import MIN_NUMBERS, MIN_TARGET
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.samples import (
    MAX_PICKED,
    MAX_ROWS,
    _keys,
    keys_of,
    picked,
    tell,
)
from traincheck_plugin.vocabulary import MAX_SAMPLES


def told(samples, targets, host="cpu"):
    """Return the target of each key; None where nothing is told."""
    readings = DeviceReadings()
    found = tell(picked(samples, len(samples)), picked(targets, len(samples)), readings, host)
    if found is None:
        return None
    readings.resolve(readings.ticket())
    keys, labels = found
    assert len(keys) == min(len(samples), MAX_SAMPLES)
    return dict(zip(keys.tolist(), labels.tolist(), strict=True))


DTYPES = st.sampled_from(
    [torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool]
)


@given(DTYPES, st.integers(1, 20), st.integers(0, 1000), st.sampled_from(["cpu", "none"]))
def test_a_sample_has_its_key_wherever_it_is_in_a_batch(dtype, number, seed, host):
    generator = torch.Generator().manual_seed(seed)
    # All different, though of half as many different values.
    samples = torch.rand(number, 16, generator=generator).mul(9).round()
    samples[:, 0] = torch.arange(number) // 2
    samples[:, 1] = torch.arange(number) % 2
    samples = samples.to(dtype) if dtype is not torch.bool else (
        torch.arange(number)[:, None] >> torch.arange(8) & 1).bool()  # fmt: skip
    targets = torch.arange(number) * 2
    order = torch.randperm(number, generator=generator)
    found = told(samples, targets, host)
    assert found == told(samples[order], targets[order], host)
    assert sorted(found.values()) == targets.tolist()
    assert all(0 <= key < 1 << 52 for key in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_small_whole_numbers_of_any_width_have_keys_of_their_own(dtype):
    number = torch.arange(4096)
    samples = (number[:, None] >> torch.arange(12) & 1).to(dtype)
    assert len(torch.unique(samples_module._keys(samples))) == len(samples)


def test_the_same_samples_are_chosen_of_every_batch():
    samples, targets = torch.randn(300, 8), torch.arange(300) * 3
    whole = told(samples, targets)
    assert len(whole) == MAX_SAMPLES
    limit = max(whole)
    half = told(samples[:150], targets[:150])
    assert {key: target for key, target in half.items() if key <= limit} == {
        key: target for key, target in whole.items() if target < 450
    }
    assert set(whole.values()).isdisjoint({None})
    # Of a very large batch, some.
    assert len(told(torch.randn(MAX_ROWS + 9, 2), torch.arange(MAX_ROWS + 9) * 2)) == MAX_SAMPLES


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
@pytest.mark.parametrize(("length", "number"), [(4, 5), (8, 3), (6, 4)])
def test_short_rows_of_small_numbers_have_keys_of_their_own(length, number, dtype):
    rows = torch.cartesian_prod(*[torch.arange(number, dtype=dtype)] * length)
    assert len(rows) == number**length
    keys = torch.cat([_keys(some) for some in rows.split(1000)])
    assert len(keys.unique()) == len(rows)


def test_a_sample_that_is_padded_further_is_another_one():
    rows = torch.randint(1, 9, (20, 6))
    longer = torch.nn.functional.pad(rows, (0, 3))
    assert told(rows, torch.arange(20) * 2).keys().isdisjoint(told(longer, torch.arange(20) * 2))


def test_targets_of_several_numbers_have_a_hash():
    samples, masks = torch.randn(6, 3, 4, 4), torch.randint(2, (6, 4, 4)).float()
    found = told(samples, masks)
    assert found == told(samples, masks.clone())
    turned = told(samples, masks.flip(2))
    assert found.keys() == turned.keys()
    assert all(found[key] != turned[key] for key in found)
    assert all(float(target).is_integer() for target in found.values())


@pytest.mark.parametrize(
    "targets",
    [
        torch.randn(8),
        torch.tensor([float("nan")] * 8),
        # Contrastive losses number the samples of a batch, in any order.
        torch.arange(8),
        torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]),
        torch.arange(8) + 24,
    ],
)
def test_real_numbers_and_numbers_of_samples_are_not_told(targets):
    samples = torch.randn(8, 3)
    assert told(samples, targets) is None
    assert np.isnan(list(told(samples, targets, host="none").values())).all()
    assert len(told(samples[:1], torch.tensor([3]))) == 1


def test_large_samples_are_not_kept():
    large = torch.randn(4, 3 * MAX_PICKED)
    assert picked(large, 4).shape == (4, MAX_PICKED)
    assert picked(large, 4).untyped_storage().nbytes() == 4 * 4 * MAX_PICKED
    assert picked(large[:, :9], 4).data_ptr() == large.data_ptr()
    assert picked(torch.randn(7), 4) is None
    assert picked(torch.randn(0), 0) is None
    assert picked(torch.zeros(4, 0), 4) is None


@pytest.mark.parametrize("num_pixels", [3, 1 << 18])
def test_a_backward_tells_the_targets_of_the_samples(num_pixels):
    images, labels = torch.randn(6, num_pixels), torch.tensor([0, 2, 1, 1, 0, 2])

    def train():
        model = nn.Sequential(nn.Linear(num_pixels, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for order in (torch.arange(6), torch.randperm(6)):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[order]), labels[order]).backward()
            optimizer.step()

    recording = record(train, Plan.full())

    told_of = []
    for call in recording.of_role("backward"):
        [frame] = [
            frame
            for frame in recording.windows[call.window].frames_of_call[call.number]
            if "value" in frame.columns and frame.phase == "begin" and "data" in frame.columns
        ]
        assert len(set(frame.variables.tolist())) == 1
        variable = recording.windows[0].catalog.variables[int(frame.variables[0])]
        assert (variable.name, variable.type) == ("0", "nll_loss")
        told_of.append(dict(zip(*(frame.columns[n].tolist() for n in ("data", "value")))))  # noqa: B905
    assert told_of[0] == told_of[1]
    assert sorted(told_of[0].values()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("host", ["cpu", "none"])
def test_keys_alone_are_the_same_ones(host):
    samples = torch.randn(100, 4)
    readings = DeviceReadings()
    keys = keys_of(picked(samples, 100), samples, readings, host)
    readings.resolve(readings.ticket())
    assert sorted(keys.tolist()) == sorted(told(samples, torch.arange(100) * 2))


@pytest.mark.parametrize("host", ["cpu", "none"])
def test_samples_that_differ_where_nobody_looks_have_no_keys(host):
    same = torch.randn(1, 3 * MAX_PICKED).expand(5, -1)
    other = same.clone()
    other[3, 1] += 1

    def told_of(values):
        readings = DeviceReadings()
        keys = keys_of(picked(values, 5), values, readings, host)
        readings.resolve(readings.ticket())
        return keys.tolist()

    assert len(set(told_of(same))) == 1
    assert all(told_of(same))
    assert told_of(other) == [0] * 5


def test_a_forward_tells_the_samples_of_real_numbers():
    first, second, tokens = torch.randn(6, 3), torch.randn(8, 3), torch.randint(9, (6, 3))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, first, tokens, *, second):
            return self.layer(torch.cat([first, second])).sum() + tokens.sum()

    def train():
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(first, tokens, second=torch.cat([second[:4], second[:4]])).backward()
        optimizer.step()
        with torch.no_grad():
            model(first, tokens, second=second)

    recording = record(train, Plan.full())

    found = [
        (recording.windows[0].catalog.variables[int(frame.variables[0])].name, frame)
        for window in recording.windows
        for frame in window.frames
        if window.kind(frame) == "sample" and frame.phase == "end"
    ]
    assert [name for name, _ in found[:2]] == ["0", "second"]
    assert all(set(frame.columns) == {"data"} for _, frame in found)
    assert len(set(found[0][1].columns["data"].tolist())) == 6
    twice = found[1][1].columns["data"].tolist()
    assert (len(twice), len(set(twice))) == (8, 4)


@pytest.mark.parametrize("width", [MIN_NUMBERS, MIN_NUMBERS - 1])
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_samples_of_whole_numbers_and_those_of_evaluations_are_told(width, without):
    tokens = torch.arange(6 * width).view(6, width)

    def train():
        model = nn.Sequential(nn.Embedding(6 * width, 2), nn.Flatten(), nn.Linear(2 * width, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(tokens).sum().backward()
        optimizer.step()
        with without():
            model(tokens[2:])
        # With gradients it is no evaluation, whatever the mode.
        model.eval()(tokens)

    recording = record(train, Plan.full())
    contexts = recording.windows[0].catalog.contexts
    found = [
        (contexts[int(frame.context)].grad_enabled, set(frame.columns["data"].tolist()))
        for window in recording.windows
        for frame in window.frames
        if window.kind(frame) == "sample" and "value" not in frame.columns
    ]
    assert not recording.problems
    if width < MIN_NUMBERS:
        assert not found
    else:
        (trains, first), (evaluates, second) = found
        assert trains
        assert not evaluates
        assert (len(first), len(second)) == (6, 4)
        assert second < first


@pytest.mark.parametrize("width", [MIN_TARGET, MIN_TARGET - 1])
def test_what_a_loss_compares_is_samples_where_it_is_long_enough(width):
    fixed = torch.randn(6, width)

    def train():
        model = nn.Linear(4, width)
        for target in (fixed, fixed, torch.randn(6, width)):
            functional.mse_loss(model(torch.randn(6, 4)), target).backward()

    recording = record(train, LIFECYCLE)
    told_of = {"target": [], "prediction": []}
    for window in recording.windows:
        for frame in window.frames:
            variable = window.catalog.variables[int(frame.variables[0])]
            if variable.owner == "mse_loss":
                told_of[variable.name].append(set(frame.columns["data"].tolist()))
    assert [len(keys) for keys in told_of["prediction"]] == [6] * 3
    keys = told_of["target"]
    if width < MIN_TARGET:
        assert not keys
    else:
        first, second, third = keys
        assert first == second
        assert len(first) == 6
        assert first.isdisjoint(third)
    assert not recording.problems
