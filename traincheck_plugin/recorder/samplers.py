"""What data loaders tell of the order in which they deliver."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from traincheck_plugin.recorder.fingerprint import hash_bytes

_MAX_WRAPPERS = 8
_INNER = ("batch_sampler", "sampler", "_sampler", "base_dataloader")
"""Under which names wrappers, those of Lightning and Accelerate among them, keep what they wrap."""


def facts_of(loader: DataLoader[Any]) -> tuple[float, float, float]:
    """Return whether *loader* shuffles, the number of its samples and its batch size.

    NaN where it is not known: of samplers of others it is not.
    """
    shuffles = math.nan
    samples = math.nan
    for sampler in _samplers(loader):
        if isinstance(sampler, RandomSampler):
            shuffles = 1.0
        elif isinstance(sampler, DistributedSampler):
            # What it distributes may be shuffled already.
            shuffles = max(float(sampler.shuffle), _inner_of_distributed(sampler))
        elif isinstance(sampler, SequentialSampler) and math.isnan(shuffles):
            shuffles = 0.0
        if not math.isnan(shuffles):
            samples = float(len(sampler))
            break
    size = getattr(loader, "batch_size", None)
    if size is None:
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return shuffles, samples, float(size) if isinstance(size, int) else math.nan


def key_of_indices(indices: Any) -> float:
    """Return a number that tells the *indices* of a batch from others; NaN where they are none."""
    if not isinstance(indices, (list, tuple)) or not indices:
        return math.nan
    if not all(isinstance(index, (int, np.integer)) for index in indices):
        return math.nan
    # The bits that a double holds.
    return float(hash_bytes(np.array(indices, np.int64).tobytes()) >> 12)


def epoch_of(loader: DataLoader[Any]) -> float:
    """Return the epoch that the sampler of *loader* was told; NaN where it needs none."""
    for sampler in _samplers(loader):
        if isinstance(sampler, DistributedSampler):
            return float(sampler.epoch)
    return math.nan


def _inner_of_distributed(sampler: DistributedSampler[Any]) -> float:
    inner = getattr(sampler.dataset, "_sampler", None)
    return float(any(isinstance(one, RandomSampler) for one in _chain(inner)))


def _samplers(loader: Any) -> Iterator[Any]:
    """Yield what decides the order, the outermost first."""
    batches = getattr(loader, "batch_sampler", None)
    yield from _chain(batches)
    # Beside one that makes the batches it was given, a loader has a sampler that it does not use.
    if batches is None or getattr(loader, "batch_size", None) is not None:
        yield from _chain(getattr(loader, "sampler", None))


def _chain(sampler: Any) -> Iterator[Any]:
    for _ in range(_MAX_WRAPPERS):
        if sampler is None:
            return
        yield sampler
        sampler = next(
            (inner for name in _INNER if (inner := getattr(sampler, name, None)) is not None), None
        )
