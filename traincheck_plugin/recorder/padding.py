"""Whether targets count where the input is padding: read off a mask that tells what is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from traincheck_plugin.recorder.fingerprint import PLAIN
from traincheck_plugin.recorder.loss_graph import Target
from traincheck_plugin.recorder.readings import DeviceReadings, widest
from traincheck_plugin.vocabulary import Array

Tensor = torch.Tensor

MIN_PADDED = 8
"""Places of padding without which nothing is said."""

MAX_ROWS = 256
MAX_BYTES = 1 << 20
"""Of a mask; larger ones are not looked at."""


def is_mask(values: Tensor) -> bool:
    """Return whether a tensor may tell for each place of each sample whether it is padding."""
    return (
        type(values) in PLAIN
        and values.dim() == 2
        and values.shape[1] > 2
        and values.layout is torch.strided
        and not values.dtype.is_complex
        and not values.requires_grad
        and 0 < values.nbytes <= MAX_BYTES
    )


def counts_padding(
    target: Target, mask: Tensor, inputs: Sequence[Tensor], readings: DeviceReadings, host: str
) -> Array | None:
    """Return the share of the places of padding whose targets count; a device tells it later.

    Padding is where *mask* is 0, or where it is 1: one end of each sample, where one of *inputs*
    has the same everywhere. A place counts as such if the next one is padding, too, since the
    targets may be shifted by one.

    Args:
        target: of a loss.
        mask: of shape (samples, places).
        inputs: what the model was given besides.
        readings: of devices.
        host: type of the device that is read at once.

    Returns:
        An array of one number: the share; NaN where the mask is none, and where the targets at
        padding are not all the same, as those of another sequence. None where that is known at
        once, where the shapes differ, and where the loss leaves nothing out, or weights it.
    """
    number, width = mask.shape
    values = target.values
    alike = [one for one in inputs if one is not mask and one.shape[:2] == mask.shape]
    alike = [one for one in alike if one.device == mask.device == values.device]
    fits = values.numel() in (number * width, number * (width - 1))
    if target.ignored is None or target.is_weighted or not alike or not fits:
        return None
    labels = values.reshape(number, -1)[:MAX_ROWS, : width - 1]
    is_set = mask[:MAX_ROWS] != 0
    is_binary = (~is_set | (mask[:MAX_ROWS] == 1)).all()
    alike = [
        one[:MAX_ROWS].flatten(2) if one.dim() > 2 else one[:MAX_ROWS, :, None] for one in alike
    ]
    facts = []
    for is_padding in (~is_set, is_set):
        is_inner = is_padding[:, :-1] & is_padding[:, 1:]
        is_told = is_binary & _is_at_one_end(is_padding) & _is_one(labels[:, :, None], is_inner)
        is_told &= torch.stack([_is_padded(one, is_padding) for one in alike]).any()
        counted = is_inner & (labels != target.ignored)
        facts += [is_told, is_inner.sum(), counted.sum()]
    vector = torch.stack([fact.to(widest(mask.device)) for fact in facts])
    share = np.full(1, math.nan)

    def receive(numbers: Array) -> None:
        for is_told, num_padded, num_counted in numbers.reshape(2, 3).tolist():
            if is_told and num_padded >= MIN_PADDED:
                share[0] = num_counted / num_padded

    readings.take(vector, receive, host)
    is_known = vector.device.type == host
    return None if is_known and math.isnan(share[0]) else share


class Padding(NamedTuple):
    """The padding of a batch of sequences.

    Attributes:
        end: of the samples at which it is: ``first`` or ``last``.
        is_padded: of each sample whether it has some, of two places or more; not told of those
            beyond `MAX_ROWS`.
    """

    end: str
    is_padded: Tensor


def padding_of(tokens: Tensor) -> Padding | None:
    """Return the padding of a batch.

    That is at one end of samples what is the same in several, in some more of it than in others.
    None where that is at neither end, or at both, and of masks.

    Args:
        tokens: whole numbers of shape (samples, places), on the host.
    """
    beyond = len(tokens) - MAX_ROWS
    tokens = tokens[:MAX_ROWS]
    if not bool(((tokens != 0) & (tokens != 1)).any()):
        return None
    found = [
        Padding(end, torch.nn.functional.pad(numbers > 1, (0, max(0, beyond))))
        for end, rows in (("first", tokens), ("last", tokens.flip(1)))
        if (numbers := _num_padded(rows)) is not None
    ]
    return found[0] if len(found) == 1 else None


def _num_padded(rows: Tensor) -> Tensor | None:
    """Return how many places at the begin of each row are padding; None where that is none."""
    values = rows[rows[:, 0] == rows[:, 1], 0].unique()
    if len(values) != 1:
        return None
    numbers = (rows == values).cumprod(1).sum(1)
    is_padding = bool(numbers.sum() >= MIN_PADDED) and bool((numbers != numbers[0]).any())
    return numbers if is_padding else None


def _is_at_one_end(is_padding: Tensor) -> Tensor:
    """Return whether what is padding is the end of each row, or its beginning."""
    first, second = is_padding[:, :-1], is_padding[:, 1:]
    return (first <= second).all() | (first >= second).all()


def _is_padded(values: Tensor, is_padding: Tensor) -> Tensor:
    """Return whether values are all the same at padding, and are no mask themselves."""
    return _is_one(values, is_padding) & ((values != 0) & (values != 1)).any()


def _is_one(values: Tensor, where: Tensor) -> Tensor:
    """Return whether values of shape (rows, places, features) are the same at some places."""
    values = values.to(widest(values.device)) if values.is_floating_point() else values.long()
    info = torch.finfo if values.is_floating_point() else torch.iinfo
    least, most = info(values.dtype).min, info(values.dtype).max
    where = where[:, :, None]
    lowest = values.masked_fill(~where, most).amin((0, 1))
    return (lowest == values.masked_fill(~where, least).amax((0, 1))).all()
