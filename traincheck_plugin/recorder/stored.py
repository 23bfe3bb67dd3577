"""What data sets store, read time after time: whether it stays as it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from traincheck_plugin.recorder.fingerprint import hash_bytes
from traincheck_plugin.vocabulary import NONE

MAX_STORED = 8
"""Arrays, or lists, of one data set that are looked at."""

MAX_BYTES = 1 << 16
"""Of a larger array, the beginnings of `MAX_ROWS` of its rows that have this size together."""

MAX_ROWS = 16

MAX_ITEMS = 64
"""Items of a list that are looked at, spread over all of it; of a list within one, the first."""

MAX_VALUES = 1 << 11
"""Values in lists that are looked at, of one data set: of lists of lists there are many."""

_MAX_DEPTH = 4
_NUMBERS = "biuf"
_INNER = ("dataset", "datasets")
"""Under which names data sets keep others that they take samples from."""

Array = npt.NDArray[Any]


class Stored(NamedTuple):
    """Something that a data set stores.

    Attributes:
        path: its name in the data set; "" where that is a list.
        key: a hash of the bits of some of it.
        num_blank: of an array of at least two dimensions, with a row for each sample, how many rows
            of those that were looked at are all zeros; `NONE` of others.
    """

    path: str
    key: int
    num_blank: int

    @property
    def has_samples(self) -> bool:
        """Whether it has a row for each sample."""
        return self.num_blank != NONE

    def changed(self, before: Stored) -> bool:
        """Return whether it is not what it was, but for rows that were blank, as of a cache."""
        return self.key != before.key and self.num_blank >= before.num_blank


def stored_in(dataset: Any, *, only_samples: bool = False) -> list[Stored]:
    """Return what *dataset* stores: arrays and tensors on the CPU, and lists of these and of text.

    Only attributes are read, and what they hold: nothing is asked for samples.
    """
    found = []
    reader = _Reader()
    for path, value, number in _values(dataset):
        has_samples = _is_array(value) and value.ndim > 1 and len(value) == number
        if only_samples and not has_samples:
            continue
        key = reader.key(value)
        if key is not None:
            num_blank = _num_blank(_as_array(value)) if has_samples else NONE
            found.append(Stored(path, key, num_blank))
            if len(found) == MAX_STORED:
                break
    return found


def _values(dataset: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Yield what a data set stores, and those that it takes samples from.

    Yields:
        Path, value, and the number of samples of the data set that has it; -1 if it is not known.
    """
    if isinstance(dataset, (list, tuple)):
        yield path, dataset, NONE
        return
    number = _length(dataset)
    prefix = f"{path}." if path else ""
    for name, value in getattr(dataset, "__dict__", {}).items():
        inner: Sequence[Any] = ()
        if name in _INNER and depth < _MAX_DEPTH:
            inner = value if isinstance(value, (list, tuple)) else (value,)
        if name == "datasets" or (inner and hasattr(value, "__getitem__")):
            for place, one in enumerate(inner[:MAX_STORED]):
                where = f"{name}.{place}" if name == "datasets" else name
                yield from _values(one, prefix + where, depth + 1)
        elif isinstance(value, tuple) and all(_is_array(one) for one in value):
            yield from ((f"{prefix}{name}.{place}", one, number) for place, one in enumerate(value))
        else:
            yield prefix + name, value, number


def _length(dataset: Any) -> int:
    length = getattr(type(dataset), "__len__", None)
    try:
        return NONE if length is None else int(length(dataset))
    except Exception:  # noqa: BLE001  # It is the user's, and may need what is not there.
        return NONE


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray))


def _as_array(value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        # NumPy knows no bfloat16.
        value = (value.view(torch.int16) if value.dtype is torch.bfloat16 else value).numpy()
    array: Array = value
    return array


class _Reader:
    """Makes hashes of some of what a data set stores."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def key(self, value: Any, depth: int = 0) -> int | None:
        """Return a hash of some of a value; None for what is nothing that is stored."""
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu" or value.layout is not torch.strided:
                return None
            value = _as_array(value)
        if isinstance(value, np.ndarray):
            return _key_of_array(value)
        if type(value) in (list, tuple, dict) and depth < _MAX_DEPTH:
            return self._key_of_items(value, depth)
        if depth and type(value) in (int, float, bool, str):
            return hash_bytes(str(value)[:MAX_BYTES].encode(errors="replace"))
        return None

    def _key_of_items(self, value: Any, depth: int) -> int | None:
        if type(value) is dict:
            items = list(itertools.islice(value.values(), MAX_ITEMS))
        else:
            step = 1 if depth else max(1, math.ceil(len(value) / MAX_ITEMS))
            items = list(value[::step][:MAX_ITEMS])
        items = items[: max(self._left, 0)]
        self._left -= len(items)
        keys = [self.key(item, depth + 1) for item in items]
        if not depth and (not keys or None in keys):
            return None
        told = [len(value), *(0 if key is None else key for key in keys)]
        return hash_bytes(np.array(told, np.uint64).tobytes())


def _num_blank(values: Array) -> int:
    if values.nbytes <= MAX_BYTES:
        return int(np.count_nonzero(~(values.reshape(len(values), -1) != 0).any(axis=1)))
    return sum(not part.any() for part in _parts(values))


def _key_of_array(values: Array) -> int | None:
    if values.dtype.kind not in _NUMBERS or not values.size:
        return None
    seed = hash_bytes(f"{values.dtype}{values.shape}".encode()) & 0xFFFFFFFF
    if values.nbytes <= MAX_BYTES or not values.ndim:
        return hash_bytes(np.ascontiguousarray(values).tobytes(), seed)
    return hash_bytes(b"".join(part.tobytes() for part in _parts(values)), seed)


def _parts(values: Array) -> list[Array]:
    """Return the beginnings of some rows of a large array."""
    number = MAX_BYTES // (MAX_ROWS * values.itemsize)
    return [np.ravel(row)[:number] for row in values[:: math.ceil(len(values) / MAX_ROWS)]]
