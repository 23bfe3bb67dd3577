"""The mode that modules are in, and for which of them it matters."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

Module = torch.nn.Module

_ACTING: tuple[tuple[type[Module], Callable[[Any], object]], ...] = (
    (_DropoutNd, lambda part: part.p),
    (_NormBase, lambda part: part.running_mean is not None),
    (torch.nn.RNNBase, lambda part: part.dropout and part.num_layers > 1),
    (torch.nn.MultiheadAttention, lambda part: part.dropout),
    (torch.nn.RReLU, lambda part: part.lower != part.upper),
)
"""Modules of torch that act otherwise in training, and whether one is set so that it does."""


class Mode(NamedTuple):
    """The mode of a model.

    Attributes:
        trains: whether it is in training mode.
        number: of its parts that are in the same mode, and for which that matters.
    """

    trains: bool
    number: int


class ModeReader:
    """Tells the modes of models; which parts matter is found out once for each."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Module, weakref.WeakSet[Module]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, root: Module) -> Mode:
        """Return the mode of the outermost module."""
        parts = self._known.get(root)
        if parts is None:
            # The root may be a part of itself, and must not be kept by what is known of it.
            parts = self._known[root] = weakref.WeakSet(filter(acts, root.modules()))
        trains = root.training
        return Mode(trains, sum(part.training == trains for part in parts))


def acts(part: Module) -> bool:
    """Return whether a module of torch acts otherwise in training mode, as it is set."""
    return any(isinstance(part, kind) and is_set(part) for kind, is_set in _ACTING)
