"""What a call changes, told from as little reading as proves it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch

from traincheck_plugin.recorder.fingerprint import hash_bytes, hash_tensor
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.vocabulary import Array, Bool

Tensor = torch.Tensor

_CHANGED = 1


class Movement:
    """The tensors of a table where a call begins, to be compared with where it ends.

    Some words that differ prove that a tensor changed; that it did not, only all of it can tell.
    So a large tensor is read in whole until the optimizer that steps changes it where it was looked
    at, and little of it from then on. Should it show no change there one day, it is taken for
    changed that once, and is read in whole again. What another optimizer holds is always read so.

    Attributes:
        table: of the tensors.
        column: a number for each row. It is complete when the call ended: then rows that have
            the same one as in `end` have not changed, and it is their hash.
    """

    def __init__(self, table: Tensors, optimizer: Any, problems: Problems) -> None:
        """Look at the tensors that `Tensors.data` of *table* has just read."""
        batch = table.data
        self.column: Array = np.zeros(len(table.variables), np.uint64)
        self.table = table
        self._problems = problems
        self._packs = batch.packs
        self._joined = [pack.joined for pack in batch.packs]
        self._parts = self._look()
        self._hashes: dict[int, int] = {}
        is_doubted = self._is_doubted = table.doubts(optimizer)
        for place, memory in zip(batch.singles, batch.memories, strict=True):
            if memory is None or (is_doubted[place] and not memory.is_short):
                self._hashes[place] = self._hash(place, memory)

    def end(self, table: Tensors, tensors: list[Tensor]) -> Array:
        """Return the column of the end, given the table by then and its tensors."""
        moved = np.ones(table.num_tensors, np.bool_)
        numbers = np.full(table.num_tensors, _CHANGED, np.uint64)
        if table is not self.table:
            return table.spread(numbers)  # type: ignore[no-any-return]
        batch = table.data
        try:
            # What is of another kind by now has changed.
            if batch.read(tensors) and batch.packs is self._packs:
                self._compare(moved, numbers)
        finally:
            batch.release()
        column: Array = table.spread(numbers)
        at_rest = table.spread(~moved)
        self.column[at_rest] = column[at_rest]
        return column

    def _compare(self, moved: Bool, numbers: Array) -> None:
        batch, is_doubted = self.table.data, self._is_doubted
        for pack, joined in zip(batch.packs, self._joined, strict=True):
            differs = pack.differs(joined)
            if not differs.all():
                still = np.flatnonzero(~differs)
                moved[pack.places[still]] = False
                numbers[pack.places[still]] = pack.hashes_of(still.tolist())
        for place, memory, before, part in zip(
            batch.singles, batch.memories, self._parts, self._look(), strict=True
        ):
            if part != before:
                is_doubted[place] = False
                continue
            known = self._hashes.get(place)
            if memory is not None and memory.is_short:
                known = hash_bytes(part, memory.seed)
            is_doubted[place] = True
            if known is None:
                continue
            found = self._hash(place, memory)
            if found == known:
                moved[place] = False
                numbers[place] = found

    def _look(self) -> list[bytes]:
        return [b"" if memory is None else memory.some() for memory in self.table.data.memories]

    def _hash(self, place: int, memory: Any) -> int:
        if memory is None:
            return hash_tensor(self.table.data.tensor(place), self._problems)
        return hash_bytes(memory.buffer, memory.seed)


class Movements:
    """The movements of the calls that are open, and which slots are enough to look at."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._open: dict[tuple[int, str], Movement] = {}
        self._few: weakref.WeakKeyDictionary[Any, Tensors] = weakref.WeakKeyDictionary()

    def begin(
        self, call: int, kind: str, table: Tensors, tensors: list[Tensor], optimizer: Any
    ) -> Array | None:
        """Return a column for the begin of a call; None where the tensors cannot be read now."""
        batch = table.data
        try:
            if not batch.read(tensors):
                return None
            movement = self._open[call, kind] = Movement(table, optimizer, self._problems)
        finally:
            batch.release()
        if len(self._open) > _MAX_OPEN:
            # A call that was withdrawn has no end.
            del self._open[next(iter(self._open))]
        return movement.column

    def end(self, call: int, kind: str) -> Movement | None:
        """Return the movement that began with the call, if one did."""
        return self._open.pop((call, kind), None)

    def few(self, optimizer: Any) -> Tensors | None:
        """Return some slots of *optimizer* that changed whenever they were looked at."""
        few = self._few.get(optimizer)
        return few if few is not None and few.are_alive() else None

    def choose(self, optimizer: Any, table: Tensors, moved: Bool) -> None:
        """Look at few slots of *table* from now on: small ones of those that *moved*."""
        if table.tensor_of_row is None and moved.any():
            tensors = table.alive()
            rows = sorted(np.flatnonzero(moved).tolist(), key=lambda row: tensors[row].nbytes)
            few = [(int(table.variables[row]), tensors[row]) for row in sorted(rows[:_NUM_FEW])]
            self._few[optimizer] = Tensors(few)

    def look_at_all(self, optimizer: Any) -> None:
        """Look at all slots of *optimizer*: the few have not changed."""
        self._few.pop(optimizer, None)


_MAX_OPEN = 32
_NUM_FEW = 8
