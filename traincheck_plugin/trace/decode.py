"""From the record batches of one flush back to windows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from traincheck_plugin.events import (
    ATTRIBUTES,
    CALL_COLUMNS,
    NONE,
    Api,
    Array,
    Calls,
    Catalog,
    Context,
    Frame,
    Int32,
    Interner,
    Variable,
    Window,
)
from traincheck_plugin.trace.schema import (
    CATALOG_OF_ATTRIBUTES,
    CATALOG_OF_CALLS,
    STREAMS,
    WINDOWS_KEY,
)

ENTRIES: Mapping[str, Any] = {"apis": Api, "variables": Variable, "contexts": Context}


def decode(
    batches: Mapping[str, pa.RecordBatch],
    metadata: Mapping[bytes, bytes],
    catalog: Catalog,
    *,
    rank: int,
) -> list[Window]:
    """Return the windows of one flush.

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
    headers = json.loads(metadata[WINDOWS_KEY])
    columns = _decode_calls(batches["calls"], catalog)
    frames = _decode_frames(batches["frames"], catalog)
    if sum(h[2] for h in headers) != len(columns["call"]) or sum(h[3] for h in headers) != len(
        frames
    ):
        raise ValueError("its calls and frames are not those of its windows")
    windows = []
    first_call = first_frame = 0
    for index, observed, num_calls, num_frames in headers:
        rows = slice(first_call, first_call + num_calls)
        windows.append(
            Window(
                index=index,
                rank=rank,
                calls=Calls(**{name: values[rows] for name, values in columns.items()}),
                frames=tuple(frames[first_frame : first_frame + num_frames]),
                catalog=catalog,
                observed=bool(observed),
            )
        )
        first_call += num_calls
        first_frame += num_frames
    return windows


def _decode_entries(batch: pa.RecordBatch, entry: Any, interner: Interner[Any]) -> None:
    # An older trace lacks what was added since.
    names = [field.name for field in fields(entry) if field.name in batch.schema.names]
    columns = [_freeze(batch.column(name).to_pylist()) for name in names]
    for row in zip(*columns, strict=True):
        expected = len(interner)
        if interner.code(entry(**dict(zip(names, row, strict=True)))) != expected:
            raise ValueError(f"entry {expected} of its catalog is there twice")


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
    return column.to_numpy(zero_copy_only=False).astype(dtype, copy=False)  # type: ignore[no-any-return]


def _decode_text(column: pa.DictionaryArray, interner: Interner[str]) -> Array:
    """Number the texts of *column* anew: one look-up for each distinct text."""
    texts = column.dictionary.to_pylist()
    codes = np.array([*(interner.code(text) for text in texts), NONE], np.int32)
    indices = column.indices.fill_null(len(texts)) if column.null_count else column.indices
    numbers: Int32 = codes[indices.to_numpy()]
    return numbers


def _check_codes(codes: Array, interner: Interner[Any]) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < len(interner)):
        raise ValueError("it points to entries of its catalog that are not there")


def _decode_frames(batch: pa.RecordBatch, catalog: Catalog) -> list[Frame]:
    lists = {"variables": _decode_lists(batch.column("variables"), np.int32, None)}
    for name in ATTRIBUTES:
        if name in batch.schema.names:  # a trace older than the attribute lacks it
            part = CATALOG_OF_ATTRIBUTES.get(name)
            interner = None if part is None else getattr(catalog, part)
            lists[name] = _decode_lists(batch.column(name), ATTRIBUTES[name], interner)
    variables: list[Int32] = []
    for codes in lists.pop("variables"):
        if codes is None:
            raise ValueError("it has a frame without variables")
        _check_codes(codes, catalog.variables)
        variables.append(codes)
    contexts = _decode_numbers(batch.column("context"), np.int32)
    _check_codes(contexts, catalog.contexts)
    rows = zip(
        batch.column("call").to_pylist(),
        batch.column("phase").to_pylist(),
        batch.column("sequence").to_pylist(),
        contexts.tolist(),
        variables,
        strict=True,
    )
    return [
        Frame(
            call=call,
            phase=phase,
            sequence=sequence,
            context=context,
            variables=codes,
            columns={
                name: column
                for name, columns in lists.items()
                if (column := columns[row]) is not None
            },
        )
        for row, (call, phase, sequence, context, codes) in enumerate(rows)
    ]


def _decode_lists(
    column: pa.ListArray, dtype: Any, interner: Interner[str] | None
) -> Sequence[Array | None]:
    """Return the list of each row, as views of one array, and None for nulls."""
    flat = (
        _decode_numbers(column.values, dtype)
        if interner is None
        else _decode_text(column.values, interner)
    )
    offsets = column.offsets.to_numpy()
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return [
        flat[begin:end] if there else None
        for begin, end, there in zip(
            offsets[:-1].tolist(), offsets[1:].tolist(), present.tolist(), strict=True
        )
    ]
