"""The numbers of `traincheck_plugin.recorder.fingerprint`, computed on a device and left there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch._utils import _flatten_dense_tensors

from traincheck_plugin.recorder.fingerprint import dense_values, seed_of, stacked
from traincheck_plugin.vocabulary import Array, GradState

Tensor = torch.Tensor


def device_norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """Return the norm of each tensor, as a vector on their device.

    With the order infinity, the largest absolute values.
    """
    device = tensors[0].device
    norms: list[Tensor | None] = [None] * len(tensors)
    alike: dict[torch.dtype, list[tuple[int, Tensor]]] = {}
    for place, tensor in enumerate(tensors):
        values = dense_values(tensor)
        if values is not None and values.numel():
            alike.setdefault(values.dtype, []).append((place, values))
        elif values is not None:
            norms[place] = torch.zeros((), device=device)
    for dtype, pairs in alike.items():
        # Half-precision norms are themselves rounded to half precision, or overflow.
        found = torch._foreach_norm(
            [values for _, values in pairs],
            order,
            dtype=torch.float32 if dtype.itemsize < torch.float32.itemsize else None,
        )
        for (place, _), norm in zip(pairs, found, strict=True):
            norms[place] = norm
    nothing = torch.full((), math.nan, device=device)
    return stacked([nothing if norm is None else norm for norm in norms])


def states_of(largest: Array) -> Array:
    """Return the `GradState` that belongs to the largest absolute value of each gradient."""
    states = np.full(len(largest), int(GradState.NON_ZERO), np.int8)
    states[largest == 0.0] = GradState.ZERO
    states[~np.isfinite(largest)] = GradState.NON_FINITE
    return states


BLOCK = 1 << 16
_ROWS_AT_ONCE = 1 << 22
_RESTS_AT_ONCE = 1 << 20
"""Words that are summed up side by side; the weights of the second kind are kept."""

_MAX_LAYOUTS = 16
_MULTIPLIER = 0x9E3779B97F4A7C15

_ALIKE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32}
)
"""Dtypes whose tensors can be laid one after the other as they are."""


_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""Shifts and factors of SplitMix64 (Steele et al., 2014)."""


def odd_weights(number: int, device: torch.device) -> Tensor:
    """Return weights for so many words, of which sums tell rows of small numbers apart, too.

    They are made on the device: to copy them there would wait for it. Each bit depends on all of
    the number of a word: with weights that keep a pattern, rows that balance it have one sum.
    """
    weights = torch.arange(1, number + 1, device=device) * _signed(_MULTIPLIER)
    for shift, factor in _ROUNDS:
        # Shifts of negative numbers would fill up with ones.
        shifted = (weights >> shift) & ((1 << (64 - shift)) - 1)
        weights = (weights ^ shifted) * _signed(factor)
    return weights | 1


class _Piece(NamedTuple):
    """Some words of a tensor.

    Attributes:
        words: whole blocks as rows, or what is left, of any shape.
        place: of the tensor among others.
        block: number of the first block in the tensor.
        part: number, from 1, of the part of a sparse tensor.
    """

    words: Tensor
    place: int
    block: int
    part: int


class DeviceHasher:
    """Hashes the bits of tensors on their device.

    The hash is the sum, modulo 2**64, of all 32-bit words, each times an odd weight that depends
    on its position: changing a single word always changes it, and so do swapped words and other
    constants. The device sums up blocks, and the host does the rest.

    To launch a kernel takes longer than most of its work, so that the blocks of all tensors are
    summed up side by side.

    Args:
        block: words of a block; another number makes other hashes.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._weights: dict[torch.device, Tensor] = {}
        self._layouts: dict[tuple[torch.device, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def hashes(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Callable[[Array], Array]]:
        """Return a vector of int64 on the device of *tensors*, and what makes hashes of it.

        The function takes the numbers of the vector, once they are on the host, and returns a
        64-bit hash for each tensor.
        """
        whole: dict[torch.dtype, list[_Piece]] = {}
        rest: dict[tuple[torch.dtype, bool], list[_Piece]] = {}
        for place, tensor in enumerate(tensors):
            for part, words in enumerate(_dense_parts(tensor), 1):
                num_words = words.nbytes if words.nbytes % 4 else words.nbytes // 4
                num_blocks = num_words // self._block
                if num_blocks or words.dtype not in _ALIKE or words.is_neg():
                    words = _words(words)
                if num_blocks:
                    rows = words[: num_blocks * self._block].view(num_blocks, self._block)
                    whole.setdefault(rows.dtype, []).append(_Piece(rows, place, 0, part))
                    words = words[num_blocks * self._block :]
                if words.numel():
                    kind = words.dtype, words.nbytes % 4 == 0
                    rest.setdefault(kind, []).append(_Piece(words, place, num_blocks, part))
        sums = [torch.zeros(0, dtype=torch.int64, device=tensors[0].device)]
        # Of each piece its place, its part, its first block and how many there are.
        summed: list[tuple[int, int, int, int]] = []
        for pieces in whole.values():
            sums += self._sums_of_rows([piece.words for piece in pieces])
            summed += [(place, part, block, len(rows)) for rows, place, block, part in pieces]
        for pieces in rest.values():
            sums += self._sums([piece.words for piece in pieces])
            summed += [(place, part, block, 1) for _, place, block, part in pieces]
        seeds = np.array([seed_of(t.dtype) << 32 ^ t.numel() for t in tensors], np.uint64)

        def finish(numbers: Array) -> Array:
            places, parts, firsts, counts = np.array(summed, np.int64).reshape(-1, 4).T
            starts = np.cumsum(counts) - counts
            blocks = np.arange(len(numbers)) - np.repeat(starts - firsts, counts)
            weights = blocks.astype(np.uint64) * np.uint64(2 * _MULTIPLIER % 2**64) + np.uint64(1)
            weights *= np.repeat(parts, counts).astype(np.uint64)
            totals = np.zeros(len(tensors), np.uint64)
            sums_of_blocks = numbers.astype(np.int64).view(np.uint64)
            np.add.at(totals, np.repeat(places, counts), sums_of_blocks * weights)
            return _mixed(totals ^ seeds)

        return torch.cat(sums), finish

    def _sums_of_rows(self, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the sum of each row of all of them, in order."""
        num_rows = max(1, _ROWS_AT_ONCE // self._block)
        slices = [part for rows in blocks for part in rows.split(num_rows)]
        weights = self._weights_on(blocks[0].device)
        for some in _batches(slices, _ROWS_AT_ONCE):
            rows = some[0] if len(some) == 1 else torch.cat(list(some))
            yield (rows * weights).sum(1)

    def _sums(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the sum of each tensor, smaller than a block, of one dtype, of whole words or not.

        Sums that end in each tensor less those that end before it: nothing else adds up lists of
        integers that differ in length in the same way each time.
        """
        weights = self._weights_on(tensors[0].device)
        for some in _batches(tensors, _RESTS_AT_ONCE):
            if len(some) == 1:
                words = _words(some[0])
                yield (words * weights[: len(words)]).sum().reshape(1)
                continue
            is_whole = some[0].nbytes % 4 == 0
            words = _flatten_dense_tensors(some).view(torch.int32 if is_whole else torch.uint8)
            sizes = [tensor.nbytes // 4 if is_whole else tensor.nbytes for tensor in some]
            all_weights, last = self._layout(words.device, tuple(sizes))
            ends = (words * all_weights).cumsum(0).index_select(0, last)
            yield torch.cat([ends[:1], ends.diff()])

    def _layout(self, device: torch.device, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the weights of all words of tensors of these sizes, and where each ends."""
        layout = self._layouts.get((device, sizes))
        if layout is None:
            if len(self._layouts) == _MAX_LAYOUTS:
                self._layouts.clear()
            weights = self._weights_on(device)
            last = torch.from_numpy(np.cumsum(sizes) - 1)
            if device.type == "cuda":
                # From other memory the copy would wait for the device.
                last = last.pin_memory()
            layout = self._layouts[device, sizes] = (
                torch.cat([weights[:size] for size in sizes]),
                last.to(device, non_blocking=True),
            )
        return layout

    def _weights_on(self, device: torch.device) -> Tensor:
        weights = self._weights.get(device)
        if weights is None:
            weights = self._weights[device] = odd_weights(self._block, device)
        return weights


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return tensor.indices(), tensor.values()
    return (tensor,)


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


def _mixed(numbers: Array) -> Array:
    """Return numbers whose bits all depend on all bits of those that are given."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    mixed: Array = numbers ^ (numbers >> np.uint64(31))
    return mixed


def _batches(tensors: Sequence[Tensor], num_words: int) -> Iterator[Sequence[Tensor]]:
    """Cut a list into pieces whose tensors have no more than so many words together."""
    first = size = 0
    for number, tensor in enumerate(tensors):
        size += tensor.nbytes
        if size > 4 * num_words and number > first:
            yield tensors[first:number]
            first, size = number, tensor.nbytes
    yield tensors[first:]


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value
