"""Tensors on the CPU, read time after time: many small ones at the price of a few large ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from traincheck_plugin.recorder import fingerprint
from traincheck_plugin.recorder.fingerprint import Memory
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.vocabulary import Array, Bool, GradState

Tensor = torch.Tensor
Float64 = npt.NDArray[np.float64]

MAX_PACKED_BYTES = 1 << 12
"""Larger tensors are faster read where they are."""

MIN_PACKED = 6
"""Fewer tensors of a kind are not worth a pack."""

EXACT = frozenset({torch.float32, torch.float16, torch.bfloat16})
"""Dtypes of which no square, and no sum of some, overflows or vanishes in double precision."""

_NULL, _ZERO = int(GradState.NULL), int(GradState.ZERO)
_NON_ZERO, _NON_FINITE = int(GradState.NON_ZERO), int(GradState.NON_FINITE)
_PACKED = EXACT | {torch.float64}
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


class Pack:
    """Small tensors that differ in nothing but their first dimension, copied into one and read.

    What was read before is kept, and is the answer again while not one bit is another.

    Attributes:
        places: of the tensors in the lists to come.
        dtype: of the tensors.
        joined: the copy.
    """

    def __init__(self, places: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Prepare to read *tensors*, which are found at these *places* of the lists to come."""
        first = tensors[0]
        self.places = np.array(places, np.int64)
        self.dtype = first.dtype
        self._pick: Callable[[Sequence[Any]], tuple[Tensor, ...]] = itemgetter(*places)
        self._seed = fingerprint.seed_of(first.dtype)
        starts = np.cumsum([0, *(tensor.numel() for tensor in tensors)])
        self._starts = starts[:-1]
        self._bounds = list(pairwise((starts * first.itemsize).tolist()))
        self._join: Callable[[tuple[Tensor, ...]], Tensor] = torch.cat
        if first.dim():
            self._shape = (sum(len(tensor) for tensor in tensors), *first.shape[1:])
        else:
            self._join = torch.stack
            self._shape = (len(tensors),)
        self._digest: int | None = None
        self._is_new = True
        self.joined = first
        self._hashes: Array | None = None
        self._norms: Float64 | None = None

    def read(self, tensors: Sequence[Any]) -> bool:
        """Look at the tensors as they are now; False where they are of another kind by now."""
        joined = self._join(self._pick(tensors))
        if joined.dtype is not self.dtype or joined.shape != self._shape or not joined.is_cpu:
            return False
        self.joined = joined
        self._is_new = True
        return True

    def hashes(self) -> Array:
        """Return the hash of each tensor, as it was read last."""
        self._forget()
        if self._hashes is None:
            self._hashes = np.array(self.hashes_of(range(len(self._bounds))), np.uint64)
        return self._hashes

    def hashes_of(self, numbers: Iterable[int]) -> list[int]:
        """Return the hashes of some of the tensors, as they were read last."""
        memory = _memory(self.joined)
        seed, hash_bytes = self._seed, fingerprint.hash_bytes
        bounds = self._bounds
        return [hash_bytes(memory[slice(*bounds[number])], seed) for number in numbers]

    def norms(self) -> Float64:
        """Return the norm of each tensor, as it was read last."""
        self._forget()
        if self._norms is None:
            joined = self.joined
            values = (joined if joined.itemsize >= 4 else joined.float()).numpy().reshape(-1)
            with np.errstate(all="ignore"):
                squares = np.square(values, dtype=np.float64)
                self._norms = np.sqrt(np.add.reduceat(squares, self._starts))
        return self._norms

    def differs(self, before: Tensor) -> Bool:
        """Return which tensors have other bits than in *before*, what was read earlier."""
        kind = _WORDS[self.joined.itemsize]
        words, earlier = (
            one.reshape(-1).view(torch.uint8).numpy().view(kind) for one in (self.joined, before)
        )
        found: Bool = np.logical_or.reduceat(words != earlier, self._starts)
        return found

    def _forget(self) -> None:
        """Forget what is known of other values than those read last."""
        if self._is_new:
            self._is_new = False
            digest = fingerprint.hash_bytes(_memory(self.joined))
            if digest != self._digest:
                self._digest = digest
                self._hashes = self._norms = None


class Batch:
    """Reads the tensors of one list, of which some may be None, again and again.

    Attributes:
        packs: where small tensors are read together.
        singles: the places of the others.
        memories: where these are; None for what cannot be read in place.
    """

    def __init__(self) -> None:
        self._present: Sequence[int] | None = None
        self.packs: list[Pack] = []
        self.singles: list[int] = []
        self.memories: list[Memory | None] = []
        self._tensors: Sequence[Any] = ()
        self._is_empty = True

    def read(self, tensors: Sequence[Tensor | None]) -> bool:
        """Look at *tensors* as they are now; False where one is no ordinary tensor on the CPU."""
        types = set(map(type, tensors))
        has_absent = type(None) in types
        if not types - {type(None)} <= fingerprint.PLAIN:
            return False
        present: Sequence[int] = range(len(tensors))
        if has_absent:
            present = [place for place, tensor in enumerate(tensors) if tensor is not None]
        self._tensors = tensors
        self._is_empty = not present
        if self._is_empty:
            # Gradients come and go: the arrangement will fit again.
            return True
        if present == self._present and all(pack.read(tensors) for pack in self.packs):
            return self._locate()
        self._present = None
        if not all(tensors[place].is_cpu for place in present):  # type: ignore[union-attr]
            return False
        self._arrange(present)
        self._present = present
        return all(pack.read(tensors) for pack in self.packs) and self._locate()

    def tensor(self, place: int) -> Tensor:
        """Return one of the tensors read last, until `release`."""
        tensor: Tensor = self._tensors[place]
        return tensor

    def release(self) -> None:
        """Hold the tensors no longer."""
        self._tensors = ()

    def hashes(self, problems: Problems) -> Array:
        """Return the hash of each tensor, 0 for None."""
        result = np.zeros(len(self._tensors), np.uint64)
        if self._is_empty:
            return result
        for pack in self.packs:
            result[pack.places] = pack.hashes()
        if self.singles:
            result[self.singles] = fingerprint.hashes(
                self._single_tensors(), self.memories, problems
            )
        return result

    def norms(self) -> Float64:
        """Return the norm of each tensor, NaN where there is none."""
        result = np.full(len(self._tensors), math.nan)
        if self._is_empty:
            return result
        for pack in self.packs:
            result[pack.places] = pack.norms()
        if self.singles:
            result[self.singles] = fingerprint.norms(self._single_tensors())
        return result

    def states(self, norms: Float64 | None = None) -> Array:
        """Return the `GradState` of each tensor, given the norms.

        Without the norms, tensors that are not all zeros are not told apart from those that hold
        NaN or infinity, so that a few values of each are enough.
        """
        if self._is_empty:
            return np.full(len(self._tensors), _NULL, np.int8)
        if norms is None:
            norms = self._signs_of_life()
        # True of no NaN.
        if norms.min() > 0.0 and norms.max() < math.inf:
            return np.full(len(norms), _NON_ZERO, np.int8)
        states = np.full(len(norms), _NON_FINITE, np.int8)
        states[norms == 0.0] = _ZERO
        with np.errstate(invalid="ignore"):
            is_clear = (norms > 0.0) & (norms < math.inf)
        states[is_clear] = _NON_ZERO
        # Squares of tiny or huge values underflow or overflow: only a finite, positive norm
        # speaks for itself.
        is_clear |= self._exact(len(norms))
        for place in np.flatnonzero(~is_clear).tolist():
            states[place] = fingerprint.gradient_state(self._tensors[place])
        return states

    def _signs_of_life(self) -> Float64:
        """Return the norms, but 1 for single tensors that turn out not to be zero before."""
        result = np.full(len(self._tensors), math.nan)
        for pack in self.packs:
            result[pack.places] = pack.norms()
        unclear = []
        for place, memory in zip(self.singles, self.memories, strict=True):
            if memory is not None and memory.is_seen_non_zero():
                result[place] = 1.0
            else:
                unclear.append(place)
        if unclear:
            result[unclear] = fingerprint.norms([self._tensors[place] for place in unclear])
        return result

    def _exact(self, size: int) -> Bool:
        exact = np.zeros(size, np.bool_)
        for pack in self.packs:
            if pack.dtype in EXACT:
                exact[pack.places] = True
        return exact

    def _arrange(self, present: Sequence[int]) -> None:
        kinds: dict[Any, list[int]] = {}
        singles = []
        for place in present:
            tensor = self._tensors[place]
            if _is_small(tensor):
                kinds.setdefault((tensor.dtype, tensor.dim(), tensor.shape[1:]), []).append(place)
            else:
                singles.append(place)
        self.packs = []
        for places in kinds.values():
            if len(places) < MIN_PACKED:
                singles += places
            else:
                self.packs.append(Pack(places, [self._tensors[place] for place in places]))
        self.singles = sorted(singles)
        self.memories = [None] * len(singles)

    def _single_tensors(self) -> list[Tensor]:
        return [self._tensors[place] for place in self.singles]

    def _locate(self) -> bool:
        tensors = self._single_tensors()
        if not all(tensor.is_cpu for tensor in tensors):
            self._present = None
            return False
        fingerprint.locate(tensors, self.memories)
        return True


def _memory(tensor: Tensor) -> memoryview:
    values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)


def _is_small(tensor: Tensor) -> bool:
    return (
        tensor.dtype in _PACKED
        and tensor.layout is torch.strided
        and 0 < tensor.nbytes <= MAX_PACKED_BYTES
    )
