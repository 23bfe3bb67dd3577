"""What is recorded of tensors in place of their values: hashes of their bits, norms, states."""

from __future__ import annotations

import ctypes
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash

from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.vocabulary import GradState

Tensor = torch.Tensor

hash_bytes = xxhash.xxh3_64_intdigest
_buffers: dict[int, Any] = {}
_seeds: dict[torch.dtype, int] = {}

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""Classes of ordinary tensors."""


def local(tensor: Tensor) -> Tensor:
    """Return the part of a distributed tensor that this process holds."""
    if type(tensor) not in PLAIN and hasattr(tensor, "to_local"):
        return tensor.to_local()  # type: ignore[no-any-return]
    return tensor


_NUM_LINES, _LINE = 16, 64
"""How many lines of memory are looked at, and how long they are, where any change will do,
or any value that is not zero."""


class Memory:
    """Where a tensor on the CPU is.

    Attributes:
        address, num_bytes, dtype: tell whether the tensor is still there.
        buffer: the memory, contiguous; not kept alive, so to be used only while the tensor is.
        seed: what is mixed into its hash.
    """

    __slots__ = ("_lines", "address", "buffer", "dtype", "num_bytes", "seed")

    def __init__(self, tensor: Tensor) -> None:
        self.address = tensor.data_ptr()
        self.num_bytes = tensor.nbytes
        self.dtype = tensor.dtype
        self.seed = seed_of(tensor.dtype)
        buffer = _buffers.get(self.num_bytes)
        if buffer is None:
            buffer = _buffers[self.num_bytes] = ctypes.c_char * self.num_bytes
        self.buffer = buffer.from_address(self.address)
        self._lines: Any = None

    @property
    def is_short(self) -> bool:
        """Whether `some` is all of it."""
        return self.num_bytes <= _NUM_LINES * _LINE

    def some(self) -> bytes:
        """Return a part of it, spread over the whole: the same one each time."""
        if self.is_short:
            return bytes(self.buffer)
        if self._lines is None:
            memory: Any = self.buffer
            distance = self.num_bytes // _NUM_LINES
            rows = np.frombuffer(memory, np.uint8)[: distance * _NUM_LINES]
            self._lines = rows.reshape(_NUM_LINES, distance)[:, :_LINE]
        part: bytes = self._lines.tobytes()
        return part

    def is_seen_non_zero(self) -> bool:
        """Return whether one of some values of it is not zero; False where that is not clear."""
        # 0x80 is in a -0.0. A value that has no other bytes is not clear.
        return bool(self.some().strip(b"\x00\x80"))


def locate(tensors: Sequence[Tensor], memories: list[Memory | None]) -> None:
    """Update where *tensors*, all on the CPU, are; most stay where they are.

    A memory is None where a tensor cannot be read in place.
    """
    for place, tensor in enumerate(tensors):
        memory = memories[place]
        if (
            memory is None
            or tensor.data_ptr() != memory.address
            or tensor.nbytes != memory.num_bytes
            or tensor.dtype is not memory.dtype
            or not tensor.is_contiguous()
        ):
            memories[place] = Memory(tensor) if _is_readable_in_place(tensor) else None


def _is_readable_in_place(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.dtype.is_complex
        and not tensor.is_quantized
        and not tensor.is_neg()
        and tensor.is_contiguous()
        and tensor.nbytes > 0
        and tensor.data_ptr() != 0
    )


def hashes(
    tensors: Sequence[Tensor], memories: Sequence[Memory | None], problems: Problems
) -> list[int]:
    """Return a 64-bit hash of the exact bits of each located tensor.

    The dtype is mixed in and the number of bytes counts, so that two constants differ. Contiguous
    memory is hashed in place, everything else in logical order through a copy.
    """
    return [
        hash_tensor(tensor, problems) if memory is None else hash_bytes(memory.buffer, memory.seed)
        for tensor, memory in zip(tensors, memories, strict=True)
    ]


def hash_tensor(tensor: Tensor, problems: Problems) -> int:
    """Return the hash of one tensor on the CPU, wherever its bits are."""
    if tensor.layout is not torch.strided:
        return _hash_parts(tensor, problems)
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if not tensor.nbytes:
        return hash_bytes(b"", seed_of(tensor.dtype))
    if not tensor.data_ptr():
        problems.note(f"hash: {type(tensor).__name__} has no memory of its own, it counts as 0")
        return 0
    # `tensor` keeps the memory alive meanwhile.
    memory = Memory(tensor)
    return hash_bytes(memory.buffer, memory.seed)


def seed_of(dtype: torch.dtype) -> int:
    """Return a number that tells *dtype* from others, in any process."""
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
    return hash_bytes(hashes.tobytes())


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return the norm of each tensor; NaN where it has none, 0 where it is empty."""
    result = [math.nan] * len(tensors)
    places, batch = [], []
    for place, tensor in enumerate(tensors):
        dense = dense_values(tensor)
        if dense is None:
            continue
        if dense.numel():
            places.append(place)
            # Half-precision norms are themselves rounded to half precision, or overflow.
            batch.append(dense.float() if dense.dtype.itemsize < 4 else dense)
        else:
            result[place] = 0.0
    if batch:
        found = stacked(torch._foreach_norm(batch)).tolist()
        for place, value in zip(places, found, strict=True):
            result[place] = value
    return result


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Return scalars as one vector."""
    if len({value.dtype for value in values}) > 1:
        values = [value.double() for value in values]
    return torch.stack(tuple(values))


def dense_values(tensor: Tensor) -> Tensor | None:
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
    if dtype.itemsize < 2:
        # Of eight bits torch can do next to nothing.
        tensor = tensor.float()
    return tensor


def gradient_state(gradient: Tensor | None) -> int:
    """Return the `GradState` of one gradient on the CPU."""
    if gradient is None:
        return int(GradState.NULL)
    values = dense_values(gradient)
    if values is None:
        return int(GradState.NON_FINITE)
    if not bool(values.any()):
        return int(GradState.ZERO)
    return int(GradState.NON_ZERO if bool(values.isfinite().all()) else GradState.NON_FINITE)
