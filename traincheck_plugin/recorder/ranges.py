"""The range of the finite values of tensors: at once on the CPU, or left on a device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from traincheck_plugin.recorder.readings import widest
from traincheck_plugin.vocabulary import Array

Tensor = torch.Tensor

RANGE = ("lowest", "highest", "negative")
"""The attributes that tell it: smallest and largest value, and the share that is below zero."""

_WIDENED = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
}
"""Dtypes for which devices lack a minimum, and those that hold the same."""


_NONE = (math.nan, math.nan, math.nan)


def host_range(tensor: Tensor) -> tuple[float, float, float]:
    """Return that of a tensor on the CPU, as in `RANGE`; NaN where there is none."""
    try:
        values = _ordered(tensor)
        if values is None:
            return _NONE
        # By NumPy: torch would wake its threads for it, which costs more than the work.
        numbers = values.numpy()
        with np.errstate(invalid="ignore"):
            lowest, highest = float(numbers.min()), float(numbers.max())
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                numbers = numbers[np.isfinite(numbers)]
                if not numbers.size:
                    return _NONE
                lowest, highest = float(numbers.min()), float(numbers.max())
        negative = np.count_nonzero(numbers < 0) / numbers.size if lowest < 0 else 0.0
    except (RuntimeError, TypeError):
        # Tensors that stand for others, and dtypes of which torch can do little.
        return _NONE
    return lowest, highest, negative


def device_ranges(tensors: Sequence[Tensor]) -> Tensor:
    """Return those of tensors on one device as a vector there, in turns, for `finished_ranges`."""
    device = tensors[0].device
    nothing = torch.full((_NUM_READ,), math.nan, dtype=widest(device), device=device)
    return torch.cat([_device_range(tensor, nothing) for tensor in tensors])


_NUM_READ = 4


def _device_range(tensor: Tensor, nothing: Tensor) -> Tensor:
    """Return smallest and largest value, how many are below zero and how many there are."""
    try:
        values = _ordered(tensor)
        if values is None:
            return nothing
        if values.is_floating_point():
            infinite = {"nan": math.inf, "posinf": math.inf, "neginf": math.inf}
            low = values.nan_to_num(**infinite)
            high = values.nan_to_num(**dict.fromkeys(infinite, -math.inf))
            lowest, highest, number = low.amin(), high.amax(), (low < math.inf).sum()
        else:
            low = values
            lowest, highest = values.aminmax()
            number = torch.full((), values.numel(), device=values.device)
        found = (lowest, highest, (low < 0).sum(), number)
        return torch.stack([one.to(nothing.dtype) for one in found])
    except (RuntimeError, TypeError):
        return nothing


def finished_ranges(numbers: Array) -> Array:
    """Return a row for each tensor from what `device_ranges` computed."""
    lowest, highest, negative, number = numbers.astype(np.float64).reshape(-1, _NUM_READ).T
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = np.stack([lowest, highest, negative / number], axis=1)
    rows[~np.isfinite(lowest)] = math.nan
    return rows


def _ordered(tensor: Tensor) -> Tensor | None:
    """Return a tensor as one whose values can be compared; None where there are none."""
    dtype = tensor.dtype
    if (
        tensor.layout is not torch.strided
        or tensor.is_quantized
        or dtype.is_complex
        or not tensor.numel()
    ):
        return None
    tensor = tensor.detach().resolve_neg()
    if dtype.is_floating_point:
        return tensor.float() if dtype.itemsize < torch.float32.itemsize else tensor
    return tensor.to(_WIDENED.get(dtype, dtype))
