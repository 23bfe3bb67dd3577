"""Weights whose rows are all alike: units that compute the same learn the same.

And parameters that are one in memory: what is to be one parameter is updated as two.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch

from traincheck_plugin.recorder.columns import DeviceReader
from traincheck_plugin.recorder.fingerprint import PLAIN, local
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.vocabulary import Array, Bool

Tensor = torch.Tensor

EARLY = 2
"""The step of an optimizer at which it is told of weights whose gradients have such rows, too: what
begins as zeros is told apart by its gradients."""

AT_STEP = 5
"""The step at which it is told of all weights: by then what began as zeros has moved."""


class SymmetryReader:
    """Tells twice for each optimizer which weights have rows that are all alike."""

    def __init__(self, readings: DeviceReadings) -> None:
        self._readings = readings
        self._num_steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def is_due(self, optimizer: Any | None) -> bool:
        """Count a step; return whether it is one at which it is told."""
        if optimizer is None:
            return False
        number = self._num_steps.get(optimizer, 0) + 1
        self._num_steps[optimizer] = number
        return number in (EARLY, AT_STEP)

    def of(self, table: Tensors, optimizer: Any) -> Bool:
        """Return which variables have several rows of several numbers that are all the same.

        In the step `EARLY` of the optimizer those of their gradients are, and not all zeros. What a
        device has is told later.
        """
        is_early = self._num_steps.get(optimizer) == EARLY
        column = np.zeros(len(table.variables), np.bool_)
        tensors = table.alive()
        by_device: dict[torch.device, list[int]] = {}
        for place, tensor in enumerate(tensors):
            if _has_rows(tensor) and (not is_early or _has_rows(tensor.grad)):
                by_device.setdefault(tensor.device, []).append(place)
        for places in by_device.values():
            told = torch.stack([_are_alike(tensors[place]) for place in places])
            if is_early:
                gradients = [one for place in places if (one := tensors[place].grad) is not None]
                told &= torch.stack([_are_alike(one, but=0.0) for one in gradients])

            def receive(numbers: Array, places: list[int] = places) -> None:
                alike = np.zeros(len(tensors), np.bool_)
                alike[places] = numbers > 0
                column[:] |= table.spread(alike)

            self._readings.take(told.float(), receive, DeviceReader.HOST)
        return column


def shared(tensors: Sequence[Tensor]) -> Bool:
    """Return which parameters with a gradient begin in memory where another one does."""
    addresses = np.array([_address(tensor) for tensor in tensors], np.uint64)
    _, places, counts = np.unique(addresses, return_inverse=True, return_counts=True)
    found: Bool = (addresses != 0) & (counts[places] > 1)
    return found


def _address(tensor: Tensor) -> int:
    """Return where a parameter is in memory; 0 for one that has no gradient or is nowhere."""
    if tensor.grad is None:
        return 0
    tensor = local(tensor)
    is_there = type(tensor) in PLAIN and tensor.layout is torch.strided and tensor.numel() > 0
    return tensor.data_ptr() if is_there else 0


def _has_rows(tensor: Tensor | None) -> TypeGuard[Tensor]:
    if tensor is None:
        return False
    tensor = local(tensor)
    shape = tensor.shape
    return (
        tensor.dim() > 1
        and shape[0] > 1
        and tensor.numel() > shape[0]
        and tensor.is_floating_point()
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
    )


def _are_alike(tensor: Tensor, *, but: float | None = None) -> Tensor:
    """Return whether all rows are the same, and not all of them *but*."""
    lowest, highest = torch.aminmax(local(tensor).detach().flatten(1), dim=0)
    alike = (lowest == highest).all()
    return alike if but is None else alike & (lowest != but).any()
