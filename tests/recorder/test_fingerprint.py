"""Hashes and norms: exact on the CPU, and the same kind of numbers where tensors stay away."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from traincheck_plugin.recorder.batches import MIN_PACKED, Batch
from traincheck_plugin.recorder.columns import DeviceReader, HostReader
from traincheck_plugin.recorder.device_fingerprint import (
    DeviceHasher,
    device_norms,
    states_of,
)
from traincheck_plugin.recorder.fingerprint import (
    gradient_state,
    hash_tensor,
    hashes,
    locate,
    norms,
)
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.vocabulary import GradState


def on_host(tensor):
    memories = [None]
    locate([tensor], memories)
    (value,) = hashes([tensor], memories, Problems())
    return value


def in_a_pack(tensor):
    """Hash it as one of many small tensors of its kind, where it is such a one."""
    batch = Batch()
    assert batch.read([torch.zeros_like(tensor) for _ in range(MIN_PACKED)] + [tensor])
    return int(batch.hashes(Problems())[-1])


def on_device(tensor):
    vector, finish = DeviceHasher(block=8).hashes([tensor])
    return int(finish(vector.numpy())[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_short_tensors_of_small_numbers_have_hashes_of_their_own_on_a_device(dtype):
    rows = torch.cartesian_prod(*[torch.arange(5, dtype=dtype)] * 4)
    vector, finish = DeviceHasher().hashes(list(rows))
    assert len(set(finish(vector.numpy()).tolist())) == len(rows) == 5**4


def on_device_among_others(tensor):
    """Hash it beside others of its kind and of another, small and large."""
    others = [torch.zeros_like(tensor), torch.ones(3), torch.ones(999), torch.ones(5, dtype=bool)]
    vector, finish = DeviceHasher(block=8).hashes([*others, tensor, torch.empty(0), tensor])
    *_, hashed, _, again = finish(vector.numpy())
    assert hashed == again == on_device(tensor)
    return int(hashed)


@pytest.fixture(params=[on_host, in_a_pack, on_device, on_device_among_others])
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


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
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


DTYPES = [
    *[torch.float64, torch.float32, torch.float16, torch.bfloat16],
    *[torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128],
    *[torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool],
]
SHAPES = [(), (1,), (5,), (3, 4), (2, 3, 5), (0,), (4, 0)]


def bits(dtype, shape, seed):
    """Return a tensor of any bits, or of any of both truths."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(2, shape, generator=generator, dtype=torch.bool)
    size = math.prod(shape) * dtype.itemsize
    return (
        torch.randint(256, (size,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)
    )


def laid_out(tensor, layout):
    """Return the same values in another memory layout."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.mT.contiguous().mT
    if layout == "strided":
        return torch.stack([tensor, tensor], -1)[..., 0]
    return tensor


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from(SHAPES),
    layout=st.sampled_from(["contiguous", "transposed", "strided"]),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_bit_of_any_dtype_and_layout_counts(dtype, shape, layout, seed, data):
    tensor = bits(dtype, shape, seed)
    changed = tensor.clone()
    if tensor.numel():
        where = data.draw(st.integers(0, tensor.nbytes - 1))
        bit = 1 if dtype is torch.bool else 1 << data.draw(st.integers(0, 7))
        changed.view(-1).view(torch.uint8)[where] ^= bit
    for hash_of in (on_host, in_a_pack):
        assert hash_of(laid_out(tensor, layout)) == hash_of(tensor)
        same = hash_of(laid_out(changed, layout)) == hash_of(tensor)
        assert same == (not tensor.numel())
    assert on_host(tensor) == in_a_pack(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_device_hash_tells_any_bit_and_any_exchange(dtype, size):
    tensor = bits(dtype, (size,), 3)
    found = {on_device(tensor)}
    for where in {0, tensor.nbytes // 2, tensor.nbytes - 1}:
        for bit in [0] if dtype is torch.bool else [0, 3, 7]:
            changed = tensor.clone()
            changed.view(torch.uint8)[where] ^= 1 << bit
            found.add(on_device(changed))
    number = 1 if dtype is torch.bool else 3
    assert len(found) == 1 + number * len({0, tensor.nbytes // 2, tensor.nbytes - 1})
    if size > 1:
        one = torch.zeros(size, dtype=torch.uint8).repeat_interleave(dtype.itemsize)
        one[:: dtype.itemsize][0] = 1
        swapped = one.roll(dtype.itemsize)
        assert on_device(one.view(dtype)) != on_device(swapped.view(dtype))
    assert on_device(laid_out(tensor, "strided")) == on_device(tensor)


@pytest.fixture
def group():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def test_of_a_distributed_tensor_the_shard_counts(group):
    mesh = init_device_mesh("cpu", (4,))
    part = torch.randn(6)
    reader = DeviceReader(Problems(), DeviceReadings())
    found = []
    for values in (part, part + 1, part.flip(0), part):
        shard = DTensor.from_local(values, mesh, [Shard(0)])
        columns = {}
        reader.read_data(columns, ["data"], Tensors([(0, shard)]), [shard])
        found.append(int(columns["data"][0]))
        assert not Batch().read([shard])  # not an ordinary tensor
    assert found[0] == found[3] == on_host(part)
    assert len(set(found)) == 3


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_the_device_hash_of_quantized_tensors_is_that_of_their_integers():
    def quantized(*values):
        return torch.quantize_per_tensor(torch.tensor(values), 0.5, 0, torch.qint8)

    found = [quantized(0.0, 1.0), quantized(1.0, 0.0), quantized(1.0, 1.0), quantized(0.0, 0.0)]
    assert len({on_device(tensor) for tensor in found}) == 4
    assert on_device(quantized(0.0, 1.0)) == on_device(found[0])


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.bool])
def test_constants_signs_places_and_zeros_all_differ(hashed, dtype):
    one = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]).to(dtype)
    signs = [] if dtype is torch.uint8 else [torch.tensor([-1.0] + [0.0] * 7).to(dtype)]
    halves = [torch.full((8,), 0.5).to(dtype)] if dtype.is_floating_point else []
    tensors = [
        one,
        one.roll(1),
        one.roll(7),
        *signs,
        *halves,
        *(torch.full((8,), float(value)).to(dtype) for value in range(4)),
        *(torch.zeros(size, dtype=dtype) for size in (0, 1, 2, 7)),
    ]
    assert len({hashed(tensor) for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("first", DTYPES)
def test_zeros_of_different_dtypes_differ(first):
    found = {on_host(torch.zeros(8 // dtype.itemsize or 1, dtype=dtype)) for dtype in DTYPES}
    assert len(found) == len(DTYPES)
    assert on_host(torch.zeros(3, dtype=first)) != on_host(torch.zeros(4, dtype=first))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_sparse_and_quantized_tensors_differ_by_value_and_place():
    def sparse(place, value):
        return torch.sparse_coo_tensor([[place]], [value], (4,), check_invariants=True)

    found = [sparse(1, 1.0), sparse(2, 1.0), sparse(1, 2.0), sparse(1, 1.0).to_dense()]
    found += [tensor.to_dense().reshape(2, 2).to_sparse_coo() for tensor in found[:3]]
    found += [
        torch.quantize_per_tensor(torch.tensor(values), 0.5, 0, torch.qint8)
        for values in ([0.0, 1.0], [1.0, 0.0], [1.0, 1.0])
    ]
    assert len({on_host(tensor) for tensor in found}) == len(found)
    assert on_host(sparse(1, 1.0)) == on_host(sparse(1, 1.0))


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=20),
    absent=st.sets(st.integers(0, 19)),
    seed=st.integers(0, 2**32),
)
def test_a_batch_reads_what_each_tensor_alone_tells(dtype, sizes, absent, seed):
    """In one after another, with gradients that come and go and values that change."""
    torch.manual_seed(seed)
    batch = Batch()
    tensors = [torch.randn(size).to(dtype) for size in sizes]
    for step in range(4):
        if step == 2:
            tensors[0].zero_()
        if step == 3 and sizes[-1]:
            tensors[-1][-1] = math.nan
        shown = [
            None if place in absent and step % 2 else tensor for place, tensor in enumerate(tensors)
        ]
        assert batch.read(shown)
        for place, tensor in enumerate(shown):
            if tensor is None:
                assert batch.hashes(Problems())[place] == 0
                continue
            assert batch.hashes(Problems())[place] == on_host(tensor)
            expected = float(tensor.double().norm())
            assert batch.norms()[place] == pytest.approx(expected, rel=1e-5, nan_ok=True)
        states = [gradient_state(tensor) for tensor in shown]
        assert batch.states(batch.norms()).tolist() == states
        coarse = [min(state, GradState.NON_ZERO) for state in states]
        assert np.minimum(batch.states(), GradState.NON_ZERO).tolist() == coarse


def test_a_batch_notices_tensors_of_another_kind():
    tensors = [torch.ones(4) for _ in range(MIN_PACKED)]
    batch = Batch()
    assert batch.read(tensors)
    tensors = [tensor.double() for tensor in tensors]
    assert batch.read(tensors)
    assert batch.hashes(Problems())[0] == on_host(tensors[0])
    tensors[2] = torch.ones(7, dtype=torch.float64)
    assert batch.read(tensors)
    assert batch.norms()[2] == pytest.approx(math.sqrt(7))
    assert not batch.read([*tensors, torch.ones(4, device="meta")])
