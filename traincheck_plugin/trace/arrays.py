"""Arrow arrays from Python values and from NumPy, and back to NumPy, without pandas.

`pa.array` and `pa.Array.to_numpy` do this too, but import pandas on the way where that is
installed, which takes a quarter of a second: from the training that is recorded, and from each
command that reads a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from traincheck_plugin.vocabulary import Array, Bool


def array_of(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return Python values as an array of the type *kind*; None becomes null."""
    valid = np.fromiter((value is not None for value in values), np.bool_, len(values))
    if pa.types.is_dictionary(kind):
        distinct = list(dict.fromkeys(value for value in values if value is not None))
        codes = {value: code for code, value in enumerate(distinct)}
        indices = np.array([codes.get(value, 0) for value in values], np.int32)
        return pa.DictionaryArray.from_arrays(
            numbers(indices, kind.index_type, valid), array_of(distinct, kind.value_type)
        )
    if pa.types.is_string(kind):
        # Paths that are not UTF-8 reach Python as lone surrogates.
        texts = [(value or "").encode("utf-8", "backslashreplace") for value in values]
        buffers = [_bitmap(valid), pa.py_buffer(_offsets(texts)), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(kind, len(values), buffers)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        items = array_of(
            list(chain.from_iterable(v for v in values if v is not None)), kind.value_type
        )
        if pa.types.is_fixed_size_list(kind):
            return pa.FixedSizeListArray.from_arrays(items, type=kind)
        offsets = _offsets([() if value is None else value for value in values])
        buffers = [_bitmap(valid), pa.py_buffer(offsets)]
        return pa.Array.from_buffers(kind, len(values), buffers, children=[items])
    filled = [0 if value is None else value for value in values]
    return numbers(np.array(filled, kind.to_pandas_dtype()), kind, valid)


def lists_of(lists: Sequence[Array | None], items: pa.Array) -> pa.ListArray:
    """Return the array of lists whose elements, in a row, are *items*."""
    valid = np.array([values is not None for values in lists], np.bool_)
    offsets = _offsets([() if values is None else values for values in lists])
    buffers = [_bitmap(valid), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(pa.list_(items.type), len(lists), buffers, children=[items])


def numbers(values: Array, kind: pa.DataType, valid: Array | None = None) -> pa.Array:
    """Return numbers or booleans as an array of the type *kind*, null where not *valid*."""
    if pa.types.is_boolean(kind):
        data = np.packbits(values.astype(np.bool_), bitorder="little")
    else:
        data = np.ascontiguousarray(values, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [_bitmap(valid), pa.py_buffer(data)])


def values_of(column: pa.Array) -> Array:
    """Return the numbers or booleans of *column*; where it is null, any."""
    _, data = column.buffers()
    if pa.types.is_boolean(column.type):
        return _bits(data, column)
    kind = np.dtype(column.type.to_pandas_dtype())
    return np.ndarray(len(column), kind, data, column.offset * kind.itemsize)


def valid_of(column: pa.Array) -> Bool:
    """Return False for the nulls of *column*."""
    bitmap = column.buffers()[0]
    return np.ones(len(column), np.bool_) if bitmap is None else _bits(bitmap, column)


def _bits(data: pa.Buffer, column: pa.Array) -> Bool:
    stop = column.offset + len(column)
    octets = np.ndarray((stop + 7) // 8, np.uint8, data)
    bits = np.unpackbits(octets, count=stop, bitorder="little")
    return bits[column.offset :].view(np.bool_)


def _bitmap(valid: Array | None) -> pa.Buffer | None:
    if valid is None or valid.all():
        return None
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


def _offsets(values: Sequence[Any]) -> Array:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return offsets
