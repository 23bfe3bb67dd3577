"""Hashes and norms: exact on the CPU, and the same kind of numbers where tensors stay away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from traincheck_plugin.events import GradState
from traincheck_plugin.recorder.columns import DeviceReader, HostReader
from traincheck_plugin.recorder.device_fingerprint import (
    DeviceHasher,
    device_norms,
    finished_hashes,
    hash_seeds,
    states_of,
)
from traincheck_plugin.recorder.fingerprint import hash_tensor, hashes, locate, norms
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.tables import Tensors


def on_host(tensor):
    memories = [None]
    locate([tensor], memories)
    (value,) = hashes([tensor], memories, Problems())
    return value


def on_device(tensor, block=8):
    sums = DeviceHasher(block).hashes([tensor]).numpy()
    return int(finished_hashes(sums, hash_seeds([tensor]))[0])


@pytest.fixture(params=[on_host, on_device])
def hashed(request):
    return request.param


@pytest.mark.parametrize("size", [1, 3, 8, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_one_bit_makes_another_hash(hashed, size, dtype):
    tensor = torch.zeros(size, dtype=dtype)
    before = hashed(tensor)
    flat = tensor.view(torch.uint8)
    found = {before}
    for place in {0, flat.numel() // 2, flat.numel() - 1}:
        for bit in (0, 7):
            flat[place] ^= 1 << bit
            found.add(hashed(tensor))
            flat[place] ^= 1 << bit
    assert len(found) == 1 + 2 * len({0, flat.numel() // 2, flat.numel() - 1})
    assert hashed(tensor) == before


def test_constants_differ(hashed):
    tensors = [
        torch.full((size,), value, dtype=dtype)
        for size in (1, 2, 8, 16, 17)
        for value in (0, 1, 2)
        for dtype in (torch.float32, torch.int32, torch.float64, torch.int8)
    ]
    assert len({hashed(tensor) for tensor in tensors}) == len(tensors)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=40, unique=True))
def test_order_counts(values):
    tensor = torch.tensor(values, dtype=torch.int32)
    swapped = tensor.clone()
    swapped[0], swapped[-1] = tensor[-1], tensor[0]
    assert on_host(tensor) != on_host(swapped)
    assert on_device(tensor) != on_device(swapped)


def test_layout_does_not_count(hashed):
    tensor = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert hashed(tensor.to(memory_format=torch.channels_last)) == hashed(tensor)
    assert hashed(tensor.mT.contiguous().mT) == hashed(tensor)
    assert hashed(torch.stack([tensor, tensor])[1]) == hashed(tensor)


def test_a_tensor_that_moved_is_read_where_it_is():
    weight = nn.Parameter(torch.ones(4))
    memories = [None]
    found = []
    for data in (torch.ones(4), torch.zeros(4), torch.zeros(2), torch.zeros(4).double()):
        weight.data = data
        locate([weight], memories)
        found += hashes([weight], memories, Problems())
        assert found[-1] == hash_tensor(weight, Problems())
    assert len(set(found)) == 4


def test_sparse_tensors_have_hashes(hashed):
    one, other, same = (
        torch.sparse_coo_tensor(indices, values, (4,), check_invariants=True)
        for indices, values in (
            ([[0, 2]], [1.0, 2.0]),
            ([[0, 3]], [1.0, 2.0]),
            ([[2, 0]], [2.0, 1.0]),
        )
    )
    assert hashed(one) != hashed(other)
    assert hashed(one) == hashed(same)


@pytest.mark.parametrize("size", [0, 1, 5, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.complex64])
def test_norms_are_those_of_torch(size, dtype):
    tensor = torch.linspace(-1, 1, size, dtype=torch.float64).to(dtype)
    expected = float(torch.linalg.vector_norm(tensor.to(torch.complex128)).real)
    assert norms([tensor]) == [pytest.approx(expected, rel=1e-5)]
    assert device_norms([tensor]).tolist() == [pytest.approx(expected, rel=1e-5)]


def test_what_has_no_norm_is_nan():
    tensors = [torch.arange(3), torch.ones(3)]
    assert math.isnan(norms(tensors)[0])
    found = device_norms(tensors).tolist()
    assert math.isnan(found[0])
    assert found[1] == pytest.approx(math.sqrt(3))


def test_states_follow_from_the_largest_value():
    largest = np.array([0.0, 1e-40, 1.0, math.inf, math.nan])
    assert states_of(largest).tolist() == [
        GradState.ZERO,
        GradState.NON_ZERO,
        GradState.NON_ZERO,
        GradState.NON_FINITE,
        GradState.NON_FINITE,
    ]


def test_numbers_of_a_device_arrive_when_resolved(monkeypatch):
    parameters = [nn.Parameter(torch.full((3,), float(value))) for value in range(3)]
    parameters[1].grad = torch.ones(3)
    parameters[2].grad = torch.zeros(3)
    table = Tensors(list(enumerate([*parameters, parameters[0]])))
    readings = DeviceReadings()
    reader = DeviceReader(Problems(), readings)
    # Let the reader take the CPU for a device.
    monkeypatch.setattr(DeviceReader, "HOST", "none")
    columns = {}
    names = ["data", "data_norm", "grad", "grad_norm", "grad_hash"]
    gradients = [parameter.grad for parameter in parameters]
    with torch.no_grad():
        reader.read_data(columns, names, table, list(parameters))
        reader.read_gradients(columns, names, table, gradients)

    ticket = readings.ticket()
    assert ticket > 0
    assert columns["data"].tolist() == [0] * 4
    readings.resolve(ticket)

    assert readings.ticket() == 0
    expected = {}
    host = HostReader(Problems())
    with torch.no_grad():
        host.read_data(expected, names, table, list(parameters))
        host.read_gradients(expected, names, table, gradients)
    assert columns["data_norm"] == pytest.approx([0, math.sqrt(3), math.sqrt(12), 0])
    for name in ("grad", "grad_norm"):
        np.testing.assert_allclose(columns[name], expected[name])
        assert columns[name].dtype == expected[name].dtype
    assert columns["data"][0] == columns["data"][3]
    assert len(set(columns["data"].tolist())) == 3
    assert columns["grad_hash"].dtype == np.uint64
    assert columns["grad_hash"][0] == 0
