"""What is recorded of a tensor in place of its values: a hash of its bits, norms, its state."""

from __future__ import annotations

import ctypes
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from traincheck_plugin.events import GradState
from traincheck_plugin.recorder.problems import Problems

Tensor = torch.Tensor

_hash = xxhash.xxh3_64_intdigest
_buffers: dict[int, Any] = {}
_seeds: dict[torch.dtype, int] = {}


def hash_tensor(tensor: Tensor, problems: Problems) -> int:
    """Return a 64-bit hash of the exact bits of a tensor on the CPU; 0 if they are out of reach.

    The dtype is mixed in and the number of bytes counts, so that two constants differ. Contiguous
    memory is hashed in place, everything else in logical order through a copy.
    """
    dtype = tensor.dtype
    seed = _seeds.get(dtype)
    if seed is None:
        seed = _seeds[dtype] = zlib.crc32(str(dtype).encode())
    if tensor.layout is not torch.strided:
        return _hash_sparse(tensor, problems)
    if not tensor.is_cpu:
        problems.note(f"hash: tensors on device {tensor.device.type!r} cannot be read")
        return 0
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    num_bytes = tensor.nbytes
    address = tensor.data_ptr()
    if not num_bytes:
        return _hash(b"", seed)
    if not address:
        problems.note(f"hash: {type(tensor).__name__} without memory of its own cannot be read")
        return 0
    buffer = _buffers.get(num_bytes)
    if buffer is None:
        buffer = _buffers[num_bytes] = ctypes.c_char * num_bytes
    return _hash(buffer.from_address(address), seed)


def _hash_sparse(tensor: Tensor, problems: Problems) -> int:
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        parts = (tensor.indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    else:
        problems.note(f"hash: tensors of layout {tensor.layout} cannot be read")
        return 0
    hashes = np.array([hash_tensor(part.detach(), problems) for part in parts], np.uint64)
    return _hash(hashes.tobytes())


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> list[float]:
    """Return the norm of each tensor; NaN where it has none, 0 where it is empty.

    One batched computation per device and one copy back.
    """
    result = [0.0] * len(tensors)
    batches: dict[tuple[torch.device, bool], tuple[list[int], list[Tensor]]] = {}
    for index, tensor in enumerate(tensors):
        dense = _dense_values(tensor)
        if dense is None:
            result[index] = math.nan
        elif dense.numel():
            wide = dense.dtype is torch.float64 or dense.dtype is torch.complex128
            rows, batch = batches.setdefault((dense.device, wide), ([], []))
            rows.append(index)
            batch.append(dense)
    for (_, wide), (rows, batch) in batches.items():
        values = torch._foreach_norm(batch, order)
        if any(value.dtype is not torch.float32 for value in values) and not wide:
            values = tuple(value.float() for value in values)
        for row, value in zip(rows, torch.stack(tuple(values)).tolist(), strict=True):
            result[row] = value
    return result


def _dense_values(tensor: Tensor) -> Tensor | None:
    """Return what the norm of *tensor* is computed over, or None where that is impossible."""
    dtype = tensor.dtype
    if not (dtype.is_floating_point or dtype.is_complex) or tensor.is_meta or tensor.is_quantized:
        return None
    if tensor.layout is not torch.strided:
        if tensor.layout is not torch.sparse_coo:
            return None
        tensor = tensor.coalesce().values()
    if dtype.itemsize < 4 and dtype.is_floating_point:
        # Half-precision norms are themselves rounded to half precision, or overflow.
        tensor = tensor.float()
    return tensor


def gradient_states(
    gradients: Sequence[Tensor | None], euclidean: Sequence[float] | None
) -> list[int]:
    """Return the `GradState` of each gradient, from its Euclidean norm where that is known."""
    result = [int(GradState.NULL)] * len(gradients)
    rows = [index for index, gradient in enumerate(gradients) if gradient is not None]
    if not rows:
        return result
    unsure = rows
    if euclidean is not None:
        # Squares of tiny or huge values underflow or overflow: only a finite, positive norm
        # speaks for itself.
        unsure = []
        for row in rows:
            if 0.0 < euclidean[row] < math.inf:
                result[row] = int(GradState.NON_ZERO)
            else:
                unsure.append(row)
    if unsure:
        found = [gradient for row in unsure if (gradient := gradients[row]) is not None]
        for row, largest in zip(unsure, norms(found, math.inf), strict=True):
            if largest == 0.0:
                result[row] = int(GradState.ZERO)
            elif math.isfinite(largest):
                result[row] = int(GradState.NON_ZERO)
            else:
                result[row] = int(GradState.NON_FINITE)
    return result


Reader = Callable[[Tensor], int]
