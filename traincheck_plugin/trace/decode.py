"""From the record batches of one flush back to windows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa

from traincheck_plugin.catalog import Catalog, Interner
from traincheck_plugin.events import ATTRIBUTES, CALL_COLUMNS, Calls, Joint, Window
from traincheck_plugin.stacks import Frames, Stack
from traincheck_plugin.trace.arrays import valid_of, values_of
from traincheck_plugin.trace.schema import (
    CATALOG_OF_ATTRIBUTES,
    CATALOG_OF_CALLS,
    STREAMS,
    WINDOWS_KEY,
)
from traincheck_plugin.vocabulary import (
    CONTEXT_NUMBERS,
    NONE,
    Api,
    Array,
    Bool,
    Context,
    Int32,
    Int64,
    Variable,
)

ENTRIES: Mapping[str, Any] = {"apis": Api, "variables": Variable}


def decode(
    batches: Mapping[str, pa.RecordBatch],
    metadata: Mapping[bytes, bytes],
    catalog: Catalog,
    *,
    rank: int,
) -> list[Window]:
    """Return the windows of one flush, joined where all were observed.

    Args:
        batches: the batch of each stream.
        metadata: of the batch of calls.
        catalog: what the earlier batches of the trace filled; grows by these.
        rank: of the process that wrote them.

    Raises:
        ValueError: the batches do not fit together.
    """
    for stream, entry in ENTRIES.items():
        there = batches[stream].schema.names  # a trace may be older than a column
        known = batches[stream].select([name for name in STREAMS[stream].names if name in there])
        _decode_entries(known, entry, getattr(catalog, stream))
    _decode_contexts(batches["contexts"], catalog)
    headers = json.loads(metadata[WINDOWS_KEY])
    calls = Calls(**_decode_calls(batches["calls"], catalog))
    frames = _decode_frames(batches["frames"], catalog)
    counts = np.array(headers, np.int64).reshape(-1, 4)
    first_calls, first_frames = _firsts(counts[:, 2]), _firsts(counts[:, 3])
    if first_calls[-1] != len(calls) or first_frames[-1] != len(frames):
        raise ValueError("its calls and frames are not those of its windows")
    whole = Window(
        index=headers[0][0] if headers else 0,
        rank=rank,
        calls=calls,
        frames=frames,
        catalog=catalog,
        joint=Joint(indexes=counts[:, 0].tolist(), calls=first_calls, frames=first_frames),
    )
    # What other threads called may come in a window later than where it belongs.
    if counts[:, 1].all() and (np.diff(calls.end) > 0).all():
        return [whole] if headers else []
    return [
        replace(whole.part(position), observed=bool(observed))
        for position, observed in enumerate(counts[:, 1].tolist())
    ]


def _firsts(counts: Int64) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)])


def _decode_entries(batch: pa.RecordBatch, entry: Any, interner: Interner[Any]) -> None:
    # An older trace lacks what was added since.
    names = [field.name for field in fields(entry) if field.name in batch.schema.names]
    columns = [_freeze(batch.column(name).to_pylist()) for name in names]
    for row in zip(*columns, strict=True):
        interner.append(entry(**dict(zip(names, row, strict=True))))


def _decode_contexts(batch: pa.RecordBatch, catalog: Catalog) -> None:
    contexts = catalog.contexts
    columns = {}
    for field in fields(Context):
        name = field.name
        if name not in batch.schema.names:
            # An older trace: the property has its default value.
            value = (
                field.default if name in CONTEXT_NUMBERS else contexts.others.code(field.default)
            )
            columns[name] = np.full(len(batch), value, np.int64)
            continue
        column = batch.column(name)
        if name in CONTEXT_NUMBERS:
            columns[name] = _decode_numbers(column, np.int64)
        elif pa.types.is_dictionary(column.type):
            columns[name] = _decode_text(column, contexts.others)
        else:
            values = _freeze(column.to_pylist()) if len(column.values) else [()] * len(column)
            columns[name] = np.array([contexts.others.code(value) for value in values], np.int64)
        if name not in CONTEXT_NUMBERS and (columns[name] == NONE).any():
            raise ValueError("it has nulls where texts belong")
    contexts.extend(columns)


def _freeze(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(_freeze(item) for item in value)


def _decode_calls(batch: pa.RecordBatch, catalog: Catalog) -> dict[str, Array]:
    columns: dict[str, Array] = {}
    for name, dtype in CALL_COLUMNS.items():
        column = batch.column(name)
        part = CATALOG_OF_CALLS.get(name)
        columns[name] = (
            _decode_numbers(column, dtype)
            if part is None
            else _decode_text(column, getattr(catalog, part))
        )
    _check_codes(columns["api"], catalog.apis)
    _check_codes(columns["context"], catalog.contexts)
    return columns


def _decode_numbers(column: pa.Array, dtype: Any) -> Array:
    if column.null_count:
        raise ValueError("it has nulls where numbers belong")
    return values_of(column).astype(dtype, copy=False)


def _decode_text(column: pa.DictionaryArray, interner: Interner[Any]) -> Array:
    """Number the texts of *column* anew: one look-up for each distinct text."""
    texts = column.dictionary.to_pylist()
    codes = np.array([*(interner.code(text) for text in texts), NONE], np.int32)
    indices = np.where(valid_of(column), values_of(column.indices), len(texts))
    numbers: Int32 = codes[indices]
    return numbers


def _check_codes(codes: Array, interner: Sized) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < len(interner)):
        raise ValueError("it points to entries of its catalog that are not there")


def _decode_frames(batch: pa.RecordBatch, catalog: Catalog) -> Frames:
    variables = _Lists.of(batch.column("variables"), np.int32, None)
    if not variables.present.all():
        raise ValueError("it has a frame without variables")
    _check_codes(variables.values, catalog.variables)
    context = _decode_numbers(batch.column("context"), np.int32)
    _check_codes(context, catalog.contexts)
    columns = {}
    # A trace older than an attribute lacks it.
    for name in (name for name in ATTRIBUTES if name in batch.schema.names):
        part = CATALOG_OF_ATTRIBUTES.get(name)
        interner = None if part is None else getattr(catalog, part)
        columns[name] = lists = _Lists.of(batch.column(name), ATTRIBUTES[name], interner)
        if (lists.lengths != variables.lengths * lists.present).any():
            raise ValueError("it has a frame whose columns differ in length")
    shown = np.zeros(len(batch), np.int64)
    for number, lists in enumerate(columns.values()):
        shown |= lists.present.astype(np.int64) << number
    stack, row = np.empty(len(batch), np.int64), np.empty(len(batch), np.int64)
    stacks: list[Stack] = []
    known: dict[bytes, Int32] = {}
    for rows in _alike(variables, shown):
        stack[rows], row[rows] = len(stacks), np.arange(len(rows))
        length = int(variables.lengths[rows[0]])
        codes = variables.of_rows(rows[:1], length)[0]
        stacks.append(
            Stack(
                variables=known.setdefault(codes.tobytes(), codes),
                columns={
                    name: lists.of_rows(rows, length)
                    for name, lists in columns.items()
                    if lists.present[rows[0]]
                },
            )
        )
    phases = batch.column("phase")
    names = phases.dictionary.to_pylist()
    if phases.null_count or not set(names) <= {"begin", "end"}:
        raise ValueError("it has a frame that is at neither begin nor end")
    is_begin = np.array([*(name == "begin" for name in names), False])
    return Frames(
        call=_decode_numbers(batch.column("call"), np.int64),
        is_begin=is_begin[values_of(phases.indices)],
        sequence=_decode_numbers(batch.column("sequence"), np.int64),
        context=context,
        stacks=stacks,
        stack=stack,
        row=row,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lists:
    """A column of lists.

    Attributes:
        values: of all rows.
        first, lengths: where each row begins among them, and how many it has.
        present: False for nulls.
    """

    values: Array
    first: Int64
    lengths: Int64
    present: Bool

    @classmethod
    def of(cls, column: pa.ListArray, dtype: Any, interner: Interner[str] | None) -> _Lists:
        """Decode a column; texts become codes of *interner*."""
        flat = column.values
        offsets = values_of(column.offsets).astype(np.int64)
        return cls(
            values=_decode_numbers(flat, dtype)
            if interner is None
            else _decode_text(flat, interner),
            first=offsets[:-1],
            lengths=np.diff(offsets),
            present=valid_of(column),
        )

    def of_rows(self, rows: Int64, length: int) -> Array:
        """Return the lists of *rows*, which have this *length*, as an array of two dimensions."""
        values: Array = self.values[self.first[rows][:, None] + np.arange(length)]
        return values


def _alike(variables: _Lists, shown: Int64) -> Iterator[Int64]:
    """Yield the rows of frames that show the same attributes of the same variables."""
    # Lists of unlike lengths are unlike; the frames of a run have few lengths.
    keys = (variables.lengths << len(ATTRIBUTES)) | shown
    for key in np.unique(keys).tolist():
        rows = np.flatnonzero(keys == key)
        length = key >> len(ATTRIBUTES)
        while len(rows):
            codes = variables.of_rows(rows, length)
            same = (codes == codes[0]).all(axis=1)
            yield rows[same]
            rows = rows[~same]
