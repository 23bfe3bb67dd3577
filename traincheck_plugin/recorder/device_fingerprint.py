"""The numbers of `traincheck_plugin.recorder.fingerprint`, computed on a device and left there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from traincheck_plugin.recorder.fingerprint import dense_values, seed_of, stacked
from traincheck_plugin.vocabulary import Array, GradState

Tensor = torch.Tensor


def device_norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """Return the norm of each tensor, as a vector on their device.

    With the order infinity, the largest absolute values.
    """
    dense = [dense_values(tensor) for tensor in tensors]
    batch = [values for values in dense if values is not None and values.numel()]
    device = tensors[0].device
    found = iter(torch._foreach_norm(batch, order) if batch else ())
    return stacked(
        [
            torch.full((), math.nan, device=device)
            if values is None
            else next(found)
            if values.numel()
            else torch.zeros((), device=device)
            for values in dense
        ]
    )


def states_of(largest: Array) -> Array:
    """Return the `GradState` that belongs to the largest absolute value of each gradient."""
    states = np.full(len(largest), int(GradState.NON_ZERO), np.int8)
    states[largest == 0.0] = GradState.ZERO
    states[~np.isfinite(largest)] = GradState.NON_FINITE
    return states


BLOCK = 1 << 20
_ROWS = 16
_MULTIPLIER = 0x9E3779B97F4A7C15


class DeviceHasher:
    """Hashes the bits of tensors on their device.

    The hash is the sum, modulo 2**64, of all 32-bit words, each times an odd weight that depends
    on its position: changing a single word always changes it, and so do swapped words and other
    constants. `finished_hashes` mixes in dtype and size.

    Args:
        block: words that are weighted at once; another number makes other hashes.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._weights: dict[torch.device, Tensor] = {}

    def hashes(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return a vector of int64 on the device of *tensors*."""
        return torch.stack([self._hash(tensor) for tensor in tensors])

    def _hash(self, tensor: Tensor) -> Tensor:
        if tensor.layout is torch.sparse_coo:
            tensor = tensor.coalesce()
            return self._hash(tensor.indices()) * 3 + self._hash(tensor.values())
        words = _words(tensor)
        weights = self._weights_on(tensor.device)
        total = torch.zeros((), dtype=torch.int64, device=tensor.device)
        num_blocks = words.numel() // self._block
        for first in range(0, num_blocks, _ROWS):
            last = min(first + _ROWS, num_blocks)
            blocks = words[first * self._block : last * self._block].view(-1, self._block)
            sums = (blocks.to(torch.int64) * weights).sum(1)
            numbers = torch.arange(first, last, device=tensor.device)
            total += (sums * (numbers * _signed(_MULTIPLIER) * 2 + 1)).sum()
        rest = words[num_blocks * self._block :]
        sums = (rest.to(torch.int64) * weights[: rest.numel()]).sum()
        return total + sums * _signed(num_blocks * _MULTIPLIER * 2 + 1)

    def _weights_on(self, device: torch.device) -> Tensor:
        weights = self._weights.get(device)
        if weights is None:
            weights = torch.arange(self._block, device=device) * _signed(_MULTIPLIER)
            weights = self._weights[device] = (weights ^ (weights >> 29)) * 2 + 1
        return weights


def _words(tensor: Tensor) -> Tensor:
    """Return the memory of a dense tensor, in logical order, as a vector of words or bytes."""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.stride(0) != 1:
        # One value counts as contiguous whatever its stride, and cannot be viewed as others.
        flat = flat.clone(memory_format=torch.contiguous_format).as_strided(flat.shape, (1,))
    if not flat.nbytes or flat.nbytes % 4:
        return flat.view(torch.uint8)
    if flat.storage_offset() * flat.itemsize % 4:
        flat = flat.clone()
    return flat.view(torch.int32)


def hash_seeds(tensors: Sequence[Tensor]) -> Array:
    """Return what tells tensors of different dtype or size apart, for `finished_hashes`."""
    return np.array([seed_of(t.dtype) << 32 ^ t.numel() for t in tensors], np.uint64)


def finished_hashes(sums: Array, seeds: Array) -> Array:
    """Return 64-bit hashes from what `DeviceHasher` computed and `hash_seeds`."""
    mixed = sums.astype(np.int64).view(np.uint64) ^ seeds
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
