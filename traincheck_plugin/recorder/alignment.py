"""Where the targets of a loss are among what the model was given: how many places further on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from traincheck_plugin.recorder.fingerprint import PLAIN
from traincheck_plugin.recorder.loss_graph import Target
from traincheck_plugin.recorder.padding import Padding, counts_padding, is_mask, padding_of
from traincheck_plugin.recorder.readings import DeviceReadings, widest
from traincheck_plugin.recorder.samples import picked, tell
from traincheck_plugin.vocabulary import NOWHERE, Array

Tensor = torch.Tensor

MAX_GIVEN = 16
"""Tensors that are kept between a forward and its backward."""

MAX_BYTES = 1 << 20
"""Of one of them. Larger ones are not looked at, since to keep a part would keep all."""

MAX_PAIRS = 8
"""Targets and inputs that are compared at one backward."""

MIN_KNOWN = 16
"""Elements of the target, and `MIN_DISTINCT` different ones, without which nothing is said."""

MIN_DISTINCT = 4

MIN_SHARE = 0.95
"""Of the elements of the target that are where a lag has them."""

_MAX_ROWS = 256
_MAX_SAMPLED = 256
_MAX_COMPARED = 1 << 17

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16})
_FLOATS = frozenset({torch.float64, torch.float32})


class Given(NamedTuple):
    """A tensor that the forward of a root module was given.

    Attributes:
        owner: label of the module.
        path: of the tensor among the arguments.
        dtype: of the tensor.
        values: the tensor itself; None where it is too large to be kept.
        samples: some elements of each of its samples.
    """

    owner: str
    path: str
    dtype: torch.dtype
    values: Tensor | None
    samples: Tensor | None


class _Mask(NamedTuple):
    """What may tell where there is padding.

    Attributes:
        owner: label of the module that was given it.
        path: of the tensor among the arguments.
        values: the tensor itself.
        padding: the value that stands for padding; None for a mask.
    """

    owner: str
    path: str
    values: Tensor
    padding: int | None


class Alignments:
    """Keeps what models were given until the backward, to compare the targets of the loss with."""

    def __init__(self, readings: DeviceReadings, host: str) -> None:
        self._readings = readings
        self._host = host
        self._given: list[Given] = []
        self._masks: list[_Mask] = []
        self._padded: dict[int, Padding] | None = None
        self._is_used = False

    def give(self, owner: str, found: list[tuple[str, Tensor]], padding: int | None = None) -> None:
        """Keep what can be compared of the arguments of a forward in training.

        Args:
            owner: label of the module.
            found: its arguments, by their paths.
            padding: what its embeddings take for padding; None if they say nothing.
        """
        if self._is_used:
            self.clear()
        self._padded = None
        for path, values in found:
            if len(self._given) < MAX_GIVEN and is_comparable(values):
                kept = values if values.nbytes <= MAX_BYTES else None
                samples = picked(values, len(values))
                self._given.append(Given(owner, path, values.dtype, kept, samples))
            if len(self._masks) < MAX_GIVEN and is_mask(values):
                self._masks.append(_Mask(owner, path, values, None))
                if padding is not None and values.dtype in _INTEGERS:
                    self._masks.append(_Mask(owner, path, values, padding))

    def clear(self) -> None:
        """Keep nothing."""
        self._given.clear()
        self._masks.clear()
        self._padded = None
        self._is_used = False

    def of(self, targets: list[Target]) -> tuple[list[tuple[Target, Given]], Array]:
        """Return pairs of a target and an input, and the lag of each; those of a device come later.

        The lag is how many places after an element of the target the same is found in the input,
        row by row; `NOWHERE` where it is not there, NaN where the target says too little, the input
        was not looked at, or is the target itself.
        """
        self._is_used = True
        pairs = [
            (target, given)
            for target in targets
            if is_comparable(target.values)
            for given in self._given
            if _are_alike(target.values.dtype, given.dtype)
        ]
        lags = np.full(len(pairs), math.nan)
        for place, (target, given) in enumerate(pairs[:MAX_PAIRS]):
            if given.values is None or given.values.device != target.values.device:
                continue
            for compared in _arranged(target.values, given.values):
                self._compare(compared, target.ignored, lags[place : place + 1])
                if math.isfinite(lags[place]):
                    break
        return pairs, lags

    def samples(self, targets: list[Target]) -> Iterator[tuple[Target, Given, tuple[Array, Array]]]:
        """Yield pairs of a target and an input, with what `samples.tell` tells of them."""
        self._is_used = True
        pairs = [
            (target, given)
            for target in targets
            if is_comparable(target.values)
            for given in self._given
        ]
        for target, given in pairs[:MAX_PAIRS]:
            if given.samples is None:
                continue
            labels = picked(target.values, len(given.samples))
            if labels is not None:
                told = tell(given.samples, labels, self._readings, self._host)
                if told is not None:
                    yield target, given, told

    def padding(self, targets: list[Target]) -> Iterator[tuple[Target, str, str, Array]]:
        """Yield targets and masks, a model and a path, with the share of padding that counts."""
        self._is_used = True
        # Targets that a model is given as an input, too, tell nothing of themselves.
        pairs = [
            (target, mask)
            for target in targets
            for mask in self._masks
            if mask.padding is None or target.values.data_ptr() != mask.values.data_ptr()
        ]
        for target, mask in pairs[:MAX_PAIRS]:
            inputs = [one.values for one in self._given if one.owner == mask.owner]
            share = counts_padding(
                target,
                mask.values if mask.padding is None else mask.values != mask.padding,
                [values for values in inputs if values is not None],
                self._readings,
                self._host,
            )
            if share is not None:
                yield target, mask.owner, mask.path, share

    def padded(self) -> dict[int, Padding]:
        """Return the padding of what was given, by length, as far as the host has it.

        What is of one length and padded at different ends is left out.
        """
        if self._padded is None:
            found: dict[int, list[Padding]] = {}
            for mask in self._masks:
                values = mask.values
                if mask.padding is None and values.dtype in _INTEGERS and values.is_cpu:
                    padding = padding_of(values)
                    if padding is not None:
                        found.setdefault(values.shape[1], []).append(padding)
            self._padded = {
                length: several[0]
                for length, several in found.items()
                if len({one.end for one in several}) == 1
            }
        return self._padded

    def _compare(self, compared: tuple[Tensor, Tensor], ignored: int | None, lag: Array) -> None:
        """Note the lag, now or later, if none is known."""
        target, given = compared
        num_rows, num_series, width = min(len(given), _MAX_ROWS), *given.shape[1:]
        # Of each sampled element the next one is looked at, too.
        length = max(1, target.shape[1] - 1)
        num_wanted = min(_MAX_SAMPLED // num_rows, _MAX_COMPARED // given[:num_rows].numel())
        stride = -(-length // max(1, num_wanted))
        given = given[:num_rows].flatten(1)
        # What a loss leaves out by a number that is no class is in no input but the targets.
        is_target = torch.zeros_like(given[0, :1], dtype=torch.bool)
        if ignored is not None and ignored < 0:
            is_target = torch.eq(given, ignored).any()
        sampled = target[:num_rows, :length:stride]
        is_known = (
            torch.ones_like(sampled, dtype=torch.bool) if ignored is None else (sampled != ignored)
        )
        if target.shape[1] > 1:
            # Padding, and whatever else is the same all along, is found at any place.
            is_known &= sampled != target[:num_rows, 1::stride]
        is_same = (given[:, None, :] == sampled[:, :, None]) & is_known[:, :, None]
        parts = (is_same.sum(0), sampled, is_known, is_target)
        vector = torch.cat([part.reshape(-1).to(widest(sampled.device)) for part in parts])
        num_sampled = sampled.shape[1]

        def receive(numbers: Array) -> None:
            num_values = num_rows * num_sampled
            sizes = num_sampled * num_series * width, num_values, num_values
            counts, values, known, is_target = np.split(numbers, np.cumsum(sizes))
            if is_target[0]:
                return
            found = lag_of(
                counts.reshape(num_sampled, num_series, width),
                values.reshape(num_rows, num_sampled),
                known.reshape(num_rows, num_sampled) > 0,
                range(0, length, stride),
            )
            if not math.isfinite(lag[0]) and not math.isnan(found):
                lag[0] = found

        self._readings.take(vector, receive, self._host)


def lag_of(counts: Array, values: Array, is_known: Array, sampled: range) -> float:
    """Return how many places further on in the input the elements of a target are.

    Args:
        counts: for each sampled column of the target, each series and each column of the input, in
            how many rows the two are the same and known.
        values: the sampled columns, row by row.
        is_known: which of these count.
        sampled: the places of these columns in the target.
    """
    number = int(np.count_nonzero(is_known))
    if number < MIN_KNOWN or len(np.unique(values[is_known])) < MIN_DISTINCT:
        return math.nan
    num_known = np.count_nonzero(is_known, axis=0)
    (num_series, width), furthest = counts.shape[1:], sampled[-1]
    matches = np.zeros((num_series, furthest + width))
    totals = np.zeros(furthest + width)
    for column, count, known in zip(sampled, counts, num_known, strict=True):
        first = furthest - column
        matches[:, first : first + width] += count
        totals[first : first + width] += known
    fits = (totals >= max(MIN_KNOWN, number / 2)) & (matches >= MIN_SHARE * totals)
    lags: list[int] = (np.nonzero(fits)[1] - furthest).tolist()
    return float(min(lags, key=lambda lag: (abs(lag), -lag))) if lags else NOWHERE


def is_comparable(values: Tensor) -> bool:
    """Return whether the values of a tensor are looked at: no sparse or empty one, no result."""
    return (
        type(values) in PLAIN
        and (values.dtype in _INTEGERS or values.dtype in _FLOATS)
        and values.layout is torch.strided
        and not values.requires_grad
        and values.dim() > 0
        and values.nbytes > 0
    )


def _are_alike(target: torch.dtype, given: torch.dtype) -> bool:
    return target == given or {target, given} <= _INTEGERS


def _arranged(target: Tensor, given: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield target and input as they may be arranged: by samples, and the input by series, too."""
    if target.numel() % len(given) == 0:
        rows = target.reshape(len(given), -1)
        yield rows, given.reshape(len(given), 1, -1)
        if given.dim() == 3 and target.dim() < 3:
            # The target may be of one of several series.
            yield rows, given.transpose(1, 2)
    if given.dim() == 2 and target.numel() % given.shape[1] == 0:
        # Time comes first.
        yield target.reshape(-1, given.shape[1]).T, given.T[:, None]
