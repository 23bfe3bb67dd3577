"""What is recorded of tensors in place of their values: hashes of their bits, norms, states.

One set of functions reads tensors on the CPU at once; another computes the same kind of number on
a device, as a vector that stays there.
"""

from __future__ import annotations

import ctypes
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from traincheck_plugin.events import Array, GradState
from traincheck_plugin.recorder.problems import Problems

Tensor = torch.Tensor

_hash = xxhash.xxh3_64_intdigest
_buffers: dict[int, Any] = {}
_seeds: dict[torch.dtype, int] = {}
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a distributed tensor that this process holds."""
    if type(tensor) not in _PLAIN and hasattr(tensor, "to_local"):
        return tensor.to_local()  # type: ignore[no-any-return]
    return tensor


Memory = tuple[int, int, torch.dtype, Any, int]
"""Where a tensor was when it was last hashed: address, bytes, dtype, buffer and seed."""


def hash_all(
    tensors: Sequence[Tensor], memories: list[Memory | None], problems: Problems
) -> list[int]:
    """Return a 64-bit hash of the exact bits of each tensor, all on the CPU.

    The dtype is mixed in and the number of bytes counts, so that two constants differ. Contiguous
    memory is hashed in place, everything else in logical order through a copy.

    Args:
        tensors: to hash.
        memories: where each was before, updated here: most stay where they are.
        problems: told of tensors whose bits are out of reach; they count as 0.
    """
    hashes = []
    for place, tensor in enumerate(tensors):
        memory = memories[place]
        if (
            memory is None
            or tensor.data_ptr() != memory[0]
            or tensor.nbytes != memory[1]
            or tensor.dtype is not memory[2]
            or not tensor.is_contiguous()
        ):
            memory = memories[place] = _memory(tensor)
        if memory is None:
            hashes.append(hash_tensor(tensor, problems))
        else:
            hashes.append(_hash(memory[3], memory[4]))
    return hashes


def _memory(tensor: Tensor) -> Memory | None:
    """Return where a tensor is, if it can be hashed there."""
    if (
        tensor.layout is not torch.strided
        or tensor.dtype.is_complex
        or tensor.is_quantized
        or tensor.is_neg()
        or not tensor.is_contiguous()
        or not tensor.nbytes
        or not tensor.data_ptr()
    ):
        return None
    address, num_bytes, dtype = tensor.data_ptr(), tensor.nbytes, tensor.dtype
    buffer = _buffers.get(num_bytes)
    if buffer is None:
        buffer = _buffers[num_bytes] = ctypes.c_char * num_bytes
    return address, num_bytes, dtype, buffer.from_address(address), _seed(dtype)


def hash_tensor(tensor: Tensor, problems: Problems) -> int:
    """Return the hash of one tensor on the CPU, wherever its bits are."""
    if tensor.layout is not torch.strided:
        return _hash_parts(tensor, problems)
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if not tensor.nbytes:
        return _hash(b"", _seed(tensor.dtype))
    if not tensor.data_ptr():
        problems.note(f"hash: {type(tensor).__name__} has no memory of its own, it counts as 0")
        return 0
    # A view of the memory, which `tensor` keeps alive here.
    words = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return _hash(words, _seed(tensor.dtype))


def _seed(dtype: torch.dtype) -> int:
    seed = _seeds.get(dtype)
    if seed is None:
        seed = _seeds[dtype] = zlib.crc32(str(dtype).encode())
    return seed


def _hash_parts(tensor: Tensor, problems: Problems) -> int:
    parts: tuple[Tensor, ...]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        parts = (tensor.indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        problems.note(f"hash: a tensor of layout {tensor.layout} cannot be read, it counts as 0")
        return 0
    hashes = np.array([hash_tensor(part.detach(), problems) for part in parts], np.uint64)
    return _hash(hashes.tobytes())


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the norm of each tensor on the CPU; NaN where it has none, 0 where it is empty."""
    dense = [_dense_values(tensor) for tensor in tensors]
    batch = [values for values in dense if values is not None and values.numel()]
    found = iter(_stacked(torch._foreach_norm(batch)).tolist() if batch else ())
    return [
        math.nan if values is None else next(found) if values.numel() else 0.0 for values in dense
    ]


def device_norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """Return what `norms` does, as a vector on the device of the tensors.

    With the order infinity, the largest absolute values.
    """
    dense = [_dense_values(tensor) for tensor in tensors]
    batch = [values for values in dense if values is not None and values.numel()]
    device = tensors[0].device
    found = iter(torch._foreach_norm(batch, order) if batch else ())
    return _stacked(
        [
            torch.full((), math.nan, device=device)
            if values is None
            else next(found)
            if values.numel()
            else torch.zeros((), device=device)
            for values in dense
        ]
    )


def _stacked(values: Sequence[Tensor]) -> Tensor:
    if len({value.dtype for value in values}) > 1:
        values = [value.double() for value in values]
    return torch.stack(tuple(values))


def _dense_values(tensor: Tensor) -> Tensor | None:
    """Return what the norm of *tensor* is computed over, or None where that is impossible."""
    dtype = tensor.dtype
    if dtype is torch.float32 and tensor.layout is torch.strided:
        return tensor
    if not (dtype.is_floating_point or dtype.is_complex):
        return None
    if tensor.layout is not torch.strided:
        if tensor.layout is not torch.sparse_coo:
            return None
        tensor = tensor.coalesce().values()
    if dtype.itemsize < 4:
        # Half-precision norms are themselves rounded to half precision, or overflow.
        tensor = tensor.float()
    return tensor


def gradient_states(
    gradients: Sequence[Tensor], euclidean: Sequence[float] | None = None
) -> list[int]:
    """Return the `GradState` of each gradient on the CPU, from its norm if that is known."""
    return [
        # Squares of tiny or huge values underflow or overflow: only a finite, positive norm speaks
        # for itself.
        int(GradState.NON_ZERO) if 0.0 < norm < math.inf else _state(gradient)
        for gradient, norm in zip(gradients, euclidean or norms(gradients), strict=True)
    ]


def _state(gradient: Tensor) -> int:
    values = _dense_values(gradient)
    if values is None:
        return int(GradState.NON_FINITE)
    if not bool(values.any()):
        return int(GradState.ZERO)
    return int(GradState.NON_ZERO if bool(values.isfinite().all()) else GradState.NON_FINITE)


def states_of(largest: Array) -> Array:
    """Return the `GradState` that belongs to the largest absolute value of each gradient."""
    states = np.full(len(largest), int(GradState.NON_ZERO), np.int8)
    states[largest == 0.0] = GradState.ZERO
    states[~np.isfinite(largest)] = GradState.NON_FINITE
    return states


_BLOCK = 1 << 20
_ROWS = 16
_MULTIPLIER = 0x9E3779B97F4A7C15
_weights: dict[torch.device, Tensor] = {}


def device_hashes(tensors: Sequence[Tensor]) -> Tensor:
    """Return a hash of the bits of each tensor, as a vector of int64 on their device.

    The sum, modulo 2**64, of all 32-bit words, each times an odd weight that depends on its
    position: changing a single word always changes it, and so do swapped words and other
    constants. `finished_hashes` mixes in dtype and size.
    """
    return torch.stack([_device_hash(tensor) for tensor in tensors])


def finished_hashes(sums: Array, tensors_seeds: Array) -> Array:
    """Return 64-bit hashes from what `device_hashes` computed and `hash_seeds`."""
    mixed = sums.astype(np.int64).view(np.uint64) ^ tensors_seeds
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def hash_seeds(tensors: Sequence[Tensor]) -> Array:
    """Return what tells tensors of different dtype or size apart, for `finished_hashes`."""
    return np.array([_seed(t.dtype) << 32 ^ t.numel() for t in tensors], np.uint64)


def _device_hash(tensor: Tensor) -> Tensor:
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        indices, values = _device_hash(tensor.indices()), _device_hash(tensor.values())
        return indices * 3 + values
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    flat = tensor.detach().contiguous().reshape(-1)
    words = (
        flat.view(torch.int32) if flat.nbytes % 4 == 0 and flat.nbytes else flat.view(torch.uint8)
    )
    weights = _weights.get(tensor.device)
    if weights is None:
        weights = torch.arange(_BLOCK, device=tensor.device) * _signed(_MULTIPLIER)
        weights = _weights[tensor.device] = (weights ^ (weights >> 29)) * 2 + 1
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    num_blocks = words.numel() // _BLOCK
    for first in range(0, num_blocks, _ROWS):
        block = words[first * _BLOCK : min(first + _ROWS, num_blocks) * _BLOCK].view(-1, _BLOCK)
        sums = (block.to(torch.int64) * weights).sum(1)
        numbers = torch.arange(first, first + len(sums), device=tensor.device)
        total += (sums * (numbers * _signed(_MULTIPLIER) * 2 + 1)).sum()
    rest = words[num_blocks * _BLOCK :]
    sums = (rest.to(torch.int64) * weights[: rest.numel()]).sum()
    return total + sums * _signed(num_blocks * _MULTIPLIER * 2 + 1)


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
