"""From windows to the record batches of one flush."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from traincheck_plugin.catalog import Catalog, Interner
from traincheck_plugin.events import ATTRIBUTES, CALL_COLUMNS, Calls, Frame, Window
from traincheck_plugin.trace.arrays import array_of, lists_of, numbers
from traincheck_plugin.trace.schema import (
    CATALOG_OF_ATTRIBUTES,
    CATALOG_OF_CALLS,
    STREAMS,
    WINDOWS_KEY,
)
from traincheck_plugin.vocabulary import Array

CATALOG_STREAMS = ("apis", "variables", "contexts")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSize:
    """How many entries of the catalog exist, or are written, at one moment."""

    apis: int = 0
    variables: int = 0
    contexts: int = 0

    @classmethod
    def of(cls, catalog: Catalog) -> CatalogSize:
        return cls(
            apis=len(catalog.apis),
            variables=len(catalog.variables),
            contexts=len(catalog.contexts),
        )


def encode(
    windows: Sequence[Window], *, start: CatalogSize, stop: CatalogSize
) -> Iterator[tuple[str, pa.RecordBatch, dict[bytes, bytes] | None]]:
    """Yield a batch and its metadata for each stream, in the order of `STREAMS`.

    Args:
        windows: at least one, all over the same catalog.
        start: entries of the catalog that earlier batches hold.
        stop: entries that these windows may point to.
    """
    catalog = windows[0].catalog
    for stream in CATALOG_STREAMS:
        interner = getattr(catalog, stream)
        codes = range(getattr(start, stream), getattr(stop, stream))
        yield stream, _encode_entries(stream, [interner[code] for code in codes]), None
    yield "frames", _encode_frames(windows), None
    headers = [[w.index, int(w.observed), len(w.calls), len(w.frames)] for w in windows]
    metadata = {WINDOWS_KEY: json.dumps(headers, separators=(",", ":")).encode()}
    yield "calls", _encode_calls(windows), metadata


def _encode_entries(stream: str, entries: Sequence[object]) -> pa.RecordBatch:
    schema = STREAMS[stream]
    columns = [
        array_of([getattr(entry, field.name) for entry in entries], field.type) for field in schema
    ]
    return pa.record_batch(columns, schema=schema)


def _encode_calls(windows: Sequence[Window]) -> pa.RecordBatch:
    schema = STREAMS["calls"]
    catalog = windows[0].catalog
    joined = _join_calls([window.calls for window in windows])
    counts = [len(window.calls) for window in windows]
    columns = {"window": numbers(np.repeat([w.index for w in windows], counts), pa.int32())}
    for name, values in joined.items():
        part = CATALOG_OF_CALLS.get(name)
        columns[name] = (
            numbers(values, schema.field(name).type)
            if part is None
            else _encode_text(values, getattr(catalog, part))
        )
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def _join_calls(parts: Sequence[Calls]) -> dict[str, Array]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in CALL_COLUMNS}


def _encode_text(codes: Array, interner: Interner[str]) -> pa.DictionaryArray:
    distinct, indices = np.unique(codes, return_inverse=True)
    absent = codes < 0
    if len(distinct) and distinct[0] < 0:  # negative codes come first: NONE is the only one
        distinct, indices = distinct[1:], indices - 1
    texts = array_of([interner[int(code)] for code in distinct], pa.string())
    return pa.DictionaryArray.from_arrays(numbers(indices, pa.int32(), ~absent), texts)


def _encode_frames(windows: Sequence[Window]) -> pa.RecordBatch:
    schema = STREAMS["frames"]
    catalog = windows[0].catalog
    frames = list(chain.from_iterable(window.frames for window in windows))
    counts = [len(window.frames) for window in windows]
    columns: dict[str, Any] = {
        "window": np.repeat([window.index for window in windows], counts).tolist(),
        "call": [frame.call for frame in frames],
        "phase": [frame.phase for frame in frames],
        "sequence": [frame.sequence for frame in frames],
        "context": [frame.context for frame in frames],
    }
    arrays = [array_of(values, schema.field(name).type) for name, values in columns.items()]
    arrays.append(_encode_lists([frame.variables for frame in frames], np.int32))
    arrays.extend(_encode_attribute(frames, name, catalog) for name in ATTRIBUTES)
    return pa.record_batch(arrays, schema=schema)


def _encode_attribute(frames: Sequence[Frame], name: str, catalog: Catalog) -> pa.ListArray:
    columns = [frame.columns.get(name) for frame in frames]
    part = CATALOG_OF_ATTRIBUTES.get(name)
    interner = None if part is None else getattr(catalog, part)
    return _encode_lists(columns, ATTRIBUTES[name], interner)


def _encode_lists(
    lists: Sequence[Array | None], dtype: Any, interner: Interner[str] | None = None
) -> pa.ListArray:
    present = [values for values in lists if values is not None]
    flat = np.concatenate(present) if present else np.empty(0, dtype)
    items = (
        numbers(flat, pa.from_numpy_dtype(dtype))
        if interner is None
        else _encode_text(flat, interner)
    )
    return lists_of(lists, items)
