"""Batches, inputs and random states leave fingerprints, and nothing else changes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import arguments
from traincheck_plugin.recorder.arguments import MAX_BYTES, _part, _tensors
from traincheck_plugin.recorder.columns import DeviceReader
from traincheck_plugin.recorder.ranges import device_ranges, finished_ranges, host_range
from traincheck_plugin.recorder.samplers import epoch_of, facts_of

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)
UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
SMALL = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


class Image(torch.Tensor):
    pass


DATA = TensorDataset(torch.arange(48.0).view(12, 4), torch.arange(12))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, scale=None):
        return self.dropout(self.linear(x)) * (1 if scale is None else scale)


def frames(recording, kind):
    return [
        (window.catalog, frame)
        for window in recording.windows
        for frame in window.frames
        if window.kind(frame) == kind
    ]


def train(loader, *, epochs=1, uses_keyword=False):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for x, _ in loader:
            optimizer.zero_grad()
            y = model(x=x, scale=torch.ones(1)) if uses_keyword else model(x)
            y.sum().backward()
            optimizer.step()
    with torch.no_grad():
        model.eval()(x)


def test_a_batch_and_the_input_made_of_it_have_the_same_fingerprint():
    recording = record(lambda: train(DataLoader(DATA, batch_size=4), uses_keyword=True), LIFECYCLE)

    batches, inputs = frames(recording, "batch"), frames(recording, "input")
    assert len(batches) == len(inputs) == 3
    for (catalog, batch), (_, given) in zip(batches, inputs, strict=True):
        assert [catalog.variables[c].name for c in batch.variables] == ["0", "1"]
        assert [catalog.variables[c].name for c in given.variables] == ["x", "scale"]
        assert batch.columns["data"][0] == given.columns["data"][0]
        assert given.columns["value"].tolist() == [16, 1]
    assert len({int(batch.columns["data"][0]) for _, batch in batches}) == 3


def test_what_is_on_a_device_is_read_there_and_arrives_later(monkeypatch):
    monkeypatch.setattr(DeviceReader, "HOST", "none")

    recording = record(lambda: train(DataLoader(DATA, batch_size=4)), LIFECYCLE)

    batches, inputs = frames(recording, "batch"), frames(recording, "input")
    hashes = [int(batch.columns["data"][0]) for _, batch in batches]
    assert hashes == [int(given.columns["data"][0]) for _, given in inputs]
    assert len(set(hashes)) == 3
    assert all(hashes)


_NAN = (math.nan, math.nan, math.nan)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        *((torch.tensor([[-3, 0], [2, 1]], dtype=dtype), (-3, 2, 0.25)) for dtype in SIGNED),
        *((torch.tensor([1, 0, 200], dtype=dtype), (0, 200, 0)) for dtype in UNSIGNED),
        *((torch.tensor([2.0, -1.5]).to(dtype), (-1.5, 2, 0.5)) for dtype in SMALL),
        (torch.tensor([True, False]), (0, 1, 0)),
        (torch.tensor(3), (3, 3, 0)),
        (torch.tensor([1.0, math.nan, math.inf, -2.0, -math.inf]), (-2, 1, 0.5)),
        (torch.tensor([1.0, math.nan]).bfloat16(), (1, 1, 0)),
        (torch.tensor([-math.inf, math.nan]), _NAN),
        (torch.zeros(0, 3), _NAN),
        (torch.ones(2, dtype=torch.complex64), _NAN),
        (torch.eye(2).to_sparse(), _NAN),
        (torch.arange(6.0).view(2, 3).t()[1:], (1, 5, 0)),
        (torch.ones(3, requires_grad=True), (1, 1, 0)),
        (torch._neg_view(torch.arange(3.0)), (-2, 0, 2 / 3)),
        (torch.arange(3.0).as_subclass(Image), (0, 2, 0)),
    ],
)
def test_the_range_of_the_finite_values(tensor, expected):
    assert host_range(tensor) == pytest.approx(expected, nan_ok=True)
    (there,) = finished_ranges(device_ranges([tensor]).numpy())
    assert tuple(there) == pytest.approx(expected, nan_ok=True)


def test_of_what_cannot_be_read_there_is_no_range():
    assert host_range(torch.zeros(2, device="meta")) == pytest.approx(_NAN, nan_ok=True)


def test_of_large_tensors_the_slices_are_read_that_are_fingerprinted():
    big = torch.arange(float(1 << 20))
    lowest, highest, negative = host_range(_part(big))
    assert lowest == negative == 0
    assert (15 / 16) * len(big) <= highest < len(big)
    there = finished_ranges(device_ranges([_part(big)]).numpy())
    assert there.tolist() == [[lowest, highest, negative]]


@pytest.mark.parametrize("host", ["cpu", "none"])
def test_values_are_told_with_batches_and_inputs(monkeypatch, host):
    monkeypatch.setattr(DeviceReader, "HOST", host)

    recording = record(lambda: train(DataLoader(DATA, batch_size=4)), LIFECYCLE)

    told = [
        (frame.columns["lowest"].tolist(), frame.columns["highest"].tolist())
        for _, frame in frames(recording, "batch")
    ]
    assert told == [([0, 0], [15, 3]), ([16, 4], [31, 7]), ([32, 8], [47, 11])]
    inputs = [frame.columns["highest"].tolist() for _, frame in frames(recording, "input")]
    assert inputs == [[15], [31], [47]]


@pytest.mark.parametrize("names", ["data value", "lowest highest", "value"])
def test_only_what_the_plan_wants_is_read(monkeypatch, names):
    for reader in ("hash_tensor",) * ("data" not in names) + ("host_range",) * ("low" not in names):
        monkeypatch.setattr(arguments, reader, None)
    wanted = frozenset(("batch", name) for name in names.split())
    plan = Plan(functions=frozenset(), attributes={"data": wanted})

    recording = record(lambda: train(DataLoader(DATA, batch_size=4)), plan)

    assert {tuple(frame.columns) for _, frame in frames(recording, "batch")} == {
        tuple(names.split())
    }


def test_a_loader_tells_where_it_is():
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    recording = record(lambda: train(loader, epochs=2), LIFECYCLE)

    told = [frame.columns["value"].tolist() for _, frame in frames(recording, "loader")]

    assert [facts[:5] for facts in told] == [
        [1, 12, 4, start, batch] for start in range(2) for batch in range(3)
    ]
    assert all(math.isnan(facts[5]) for facts in told)


@pytest.mark.parametrize("name", ["numpy", "python"])
def test_states_of_other_generators_are_read_and_not_touched(name):
    draws = {"numpy": np.random.random, "python": random.random}
    draw = draws[name]
    random.seed(3)
    np.random.seed(3)

    def run():
        net = nn.Linear(3, 2)
        for number in range(3):
            net(torch.ones(4, 3)).sum().backward()
            if number == 0:
                draw()

    recording = record(run, LIFECYCLE)
    told = draw()
    random.seed(3)
    np.random.seed(3)
    assert [draw(), draw()][1] == told
    states = {}
    for _, frame in frames(recording, "generator"):
        for code, state in zip(frame.variables, frame.columns["data"], strict=True):
            generator = recording.windows[0].catalog.variables[int(code)].name
            states.setdefault(generator, []).append(int(state))
    assert list(states) == ["cpu", "numpy", "python"]
    for generator, seen in states.items():
        # The begin and the end of three forwards; only one draws after the first.
        assert len(set(seen[:2])) == len(set(seen[2:])) == 1
        assert (seen[1] != seen[2]) == (generator == name)


def test_random_states_are_read_and_not_touched():
    torch.manual_seed(3)
    train(DataLoader(DATA, batch_size=4, shuffle=True))
    expected = torch.get_rng_state()
    torch.manual_seed(3)

    recording = record(lambda: train(DataLoader(DATA, batch_size=4, shuffle=True)), LIFECYCLE)

    assert torch.equal(torch.get_rng_state(), expected)
    states = [int(frame.columns["data"][0]) for _, frame in frames(recording, "generator")]
    # The begin and the end of three forwards; nothing draws between the end and the next begin.
    assert len(states) == 6
    assert states[1] == states[2]
    assert len(set(states)) == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shuffle": True}, (1, 12, 4)),
        ({}, (0, 12, 4)),
        ({"sampler": DistributedSampler(DATA, 2, 0)}, (1, 6, 4)),
        ({"sampler": DistributedSampler(DATA, 2, 0, shuffle=False)}, (0, 6, 4)),
        ({"sampler": WeightedRandomSampler([1.0] * 12, 12)}, (math.nan, math.nan, 4)),
    ],
)
def test_whether_a_loader_shuffles(options, expected):
    facts = facts_of(DataLoader(DATA, batch_size=4, **options))
    assert [str(float(one)) for one in facts] == [str(float(one)) for one in expected]


def test_whether_the_loaders_of_frameworks_shuffle():
    lightning = pytest.importorskip("lightning.fabric.utilities.distributed")
    accelerate = pytest.importorskip("accelerate.data_loader")

    for inner, expected in ((RandomSampler, 1), (SequentialSampler, 0)):
        wrapped = lightning.DistributedSamplerWrapper(
            inner(DATA), num_replicas=2, rank=0, shuffle=False
        )
        assert facts_of(DataLoader(DATA, sampler=wrapped))[0] == expected
        shard = accelerate.BatchSamplerShard(BatchSampler(inner(DATA), 2, False), 2, 0)
        assert facts_of(accelerate.DataLoaderShard(DATA, batch_sampler=shard))[0] == expected
    seedable = accelerate.SeedableRandomSampler(DATA, data_seed=1)
    assert facts_of(DataLoader(DATA, sampler=seedable))[0] == 1


def test_the_epoch_of_a_distributed_sampler():
    sampler = DistributedSampler(DATA, 2, 0)
    sampler.set_epoch(5)
    assert epoch_of(DataLoader(DATA, sampler=sampler)) == 5


def test_of_large_tensors_some_slices_from_all_over_are_taken():
    big = torch.zeros(64, 3, 100, 100)
    assert 0 < _part(big).nbytes <= MAX_BYTES
    last = torch.channels_last
    assert 0 < _part(big.contiguous(memory_format=last)).nbytes <= MAX_BYTES
    assert 0 < _part(big[:, :, ::2, 1:]).nbytes <= MAX_BYTES
    assert 0 < _part(torch.zeros(1).expand(1 << 20)).nbytes <= MAX_BYTES
    for place in range(0, 64, 4):
        other = big.clone()
        other[place : place + 4] = 1
        assert not torch.equal(_part(big), _part(other))


def test_tensors_are_found_in_nested_containers():
    x = torch.zeros(1)
    assert [path for path, _ in _tensors({"a": [x, 1, (x, "b")], "c": x})] == ["a.0", "a.2.0", "c"]
    assert _tensors([[[[[[x]]]]]]) == []
