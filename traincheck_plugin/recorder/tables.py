"""Tensors and the variables they stand for."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.recorder.batches import Batch
from traincheck_plugin.vocabulary import Bool, Int32, Int64

Tensor = torch.Tensor


class Tensors:
    """Tensors of one kind, held weakly, and the variables (names) they have.

    Attributes:
        variables: code of each row.
        tensor_of_row: which tensor a row is about; None when there is one row per tensor, that is,
            without tied tensors.
        resting: hashes and norms of tensors, by row, as they were when a call last left them alone.
        data, gradients: read the tensors and their gradients, where all are on the CPU.
    """

    def __init__(self, rows: Sequence[tuple[int, Tensor]]) -> None:
        self.variables: Int32 = np.array([code for code, _ in rows], np.int32)
        places: dict[int, int] = {}
        unique: list[Tensor] = []
        index = []
        for _, tensor in rows:
            place = places.setdefault(id(tensor), len(unique))
            if place == len(unique):
                unique.append(tensor)
            index.append(place)
        self.tensor_of_row: Int64 | None = (
            None if len(unique) == len(rows) else np.array(index, np.int64)
        )
        self.num_tensors = len(unique)
        self.resting = (np.zeros(len(rows), np.uint64), np.full(len(rows), np.nan))
        self._doubts: weakref.WeakKeyDictionary[Any, Bool] = weakref.WeakKeyDictionary()
        self.data = Batch()
        self.gradients = Batch()
        self._references = [weakref.ref(tensor) for tensor in unique]

    def alive(self) -> list[Tensor]:
        """Return the tensors.

        Raises:
            ReferenceError: one is gone, the table out of date.
        """
        tensors = self._present()
        if len(tensors) != self.num_tensors:
            raise ReferenceError("a tensor went away while its frame was taken")
        return tensors

    def doubts(self, optimizer: Any) -> Bool:
        """Return of which tensors no part was seen to change when *optimizer* stepped last."""
        found = self._doubts.get(optimizer)
        if found is None:
            found = self._doubts[optimizer] = np.ones(self.num_tensors, np.bool_)
        return found

    def are_alive(self) -> bool:
        """Return whether no tensor is gone."""
        return len(self._present()) == self.num_tensors

    def _present(self) -> list[Tensor]:
        return [tensor for reference in self._references if (tensor := reference()) is not None]

    def spread(self, values: Any) -> Any:
        """Turn an array with one value per tensor into one with a value per row."""
        return values if self.tensor_of_row is None else values[self.tensor_of_row]
