"""The samples of a batch, and which target each has, as numbers that tell them from others."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from traincheck_plugin.recorder.device_fingerprint import odd_weights
from traincheck_plugin.recorder.readings import DeviceReadings, widest
from traincheck_plugin.vocabulary import MAX_SAMPLES, Array

Tensor = torch.Tensor

MAX_ROWS = 1024
"""Samples of a batch that are looked at."""

MAX_PICKED = 256
"""Elements of a sample, and of its target, that are looked at, spread over all of them."""

_BITS = 52
_MASK = (1 << _BITS) - 1
"""So many fit into the double in which they come from a device."""

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}
_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)


def picked(values: Tensor, number: int) -> Tensor | None:
    """Return some elements of each sample in a tensor of *number* samples; None if it has not that.

    Of a small tensor they are where they were, of a large one a copy, so that it need not be kept.
    """
    if not number or values.numel() < number or values.numel() % number:
        return None
    rows = values.reshape(number, -1)[:MAX_ROWS]
    stride = -(-rows.shape[1] // MAX_PICKED)
    return rows if stride == 1 else rows[:, ::stride].clone()


def tell(
    samples: Tensor, targets: Tensor, readings: DeviceReadings, host: str
) -> tuple[Array, Array] | None:
    """Return the key and the target of some of the samples; those of a device arrive in them later.

    Args:
        samples: elements of each.
        targets: elements of the target of each.
        readings: of devices.
        host: type of the device that is read at once.

    Returns:
        Keys of `_BITS` bits, and targets: whole numbers, or hashes where a sample has several; NaN
        where they are not whole, and where they only number the samples of the batch. None where
        all are NaN already, and where a device has no numbers of that width.
    """
    if widest(samples.device) is not torch.float64 or samples.device != targets.device:
        return None
    found = _smallest(samples)
    number = len(found.values)
    values = targets if targets.dtype is torch.float64 else targets.double()
    is_whole = (values == values.round()).all(1)
    told = values[:, 0] if values.shape[1] == 1 else _keys(targets).double()
    if values.shape[1] == 1 and len(values) > 1:
        # Contrastive losses number the samples of a batch.
        is_whole &= ~torch.sort(values[:, 0])[0].diff().eq(1).all()
    told = torch.where(is_whole, told, torch.full_like(told, math.nan))
    vector = torch.cat([found.values.double(), told[found.indices]])
    keys, labels = np.zeros(number, np.uint64), np.full(number, math.nan)

    def receive(numbers: Array) -> None:
        keys[:] = numbers[:number]
        labels[:] = numbers[number:]

    readings.take(vector, receive, host)
    is_known = vector.device.type == host
    return None if is_known and np.isnan(labels).all() else (keys, labels)


def keys_of(samples: Tensor, whole: Tensor, readings: DeviceReadings, host: str) -> Array | None:
    """Return the keys of some of the samples, as `tell` does.

    Args:
        samples: elements of each.
        whole: the tensor with the samples.
        readings: of devices.
        host: type of the device that is read at once.

    Returns:
        The keys: zeros where all are the same and the samples are not, so that they differ in what
        is not looked at. None where a device has no numbers of that width.
    """
    if widest(samples.device) is not torch.float64:
        return None
    found = _smallest(samples).values.double()
    is_one = found.min() == found.max()
    # To look at all that is on a device takes less than to wait for what its keys are.
    if found.device.type != host or is_one:
        is_one &= (whole != whole[:1]).any()
        found = torch.where(is_one, torch.zeros_like(found), found)
    keys = np.zeros(len(found), np.uint64)

    def receive(numbers: Array) -> None:
        keys[:] = numbers

    readings.take(found, receive, host)
    return keys


def _smallest(samples: Tensor) -> torch.return_types.topk:
    """Return the smallest keys, and of which samples they are."""
    return torch.topk(_keys(samples), min(len(samples), MAX_SAMPLES), largest=False, sorted=False)


def _keys(rows: Tensor) -> Tensor:
    """Return a number of `_BITS` bits for each row, of the bits of its elements and their number.

    A sample that is padded to another length has other targets, too.
    """
    words = rows.contiguous().view(_WORDS[rows.itemsize]).long()
    if rows.itemsize == words.itemsize:
        # Small whole numbers differ in the highest bits of a double alone, and products lose those.
        words = words ^ (words >> 32)
    number = words.shape[1]
    keys = (words * _weights(number, rows.device)).sum(1) + number
    for _ in range(2):
        keys = (keys ^ (keys >> 29)) * _MULTIPLIER
    return (keys >> 8) & _MASK


_weights = lru_cache(maxsize=64)(odd_weights)
