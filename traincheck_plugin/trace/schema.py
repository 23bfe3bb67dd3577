"""The columns of the five Arrow streams that hold the trace of one rank.

Every flush appends one record batch, possibly of zero rows, to each stream in the order of
`STREAMS`, and holds whole windows only. So the n-th batches of the five belong together, and what
a killed process leaves torn is its last flush at most.

``apis``, ``variables`` and ``contexts`` hold the catalog entries that are new since the last
flush: their codes are their row numbers. All other texts are dictionary-encoded, and each batch
brings the dictionary that it needs.

``frames`` has one row per frame, with lists over its variables: a null list is an attribute that
the frame does not have, a null inside a list is `vocabulary.NONE`.

Each batch of ``calls`` says in its metadata which windows the flush consists of, so that windows
without calls are kept; see `traincheck_plugin.trace.encode`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from traincheck_plugin.events import ATTRIBUTES

SCHEMA_VERSION = 1
"""Raised when an older reader would misread; a new column alone does not need it."""

STREAM_KEY = b"traincheck_stream"
VERSION_KEY = b"traincheck_schema_version"
WINDOWS_KEY = b"traincheck_windows"

CATALOG_OF_CALLS: Mapping[str, str] = {
    "source": "sources",
    "inputs": "signatures",
    "outputs": "signatures",
    "object": "objects",
    "exception": "strings",
}
"""Columns of calls that are stored as text, and the part of the catalog that numbers it."""

CATALOG_OF_ATTRIBUTES: Mapping[str, str] = {
    "optimizer": "objects",
    "dtype": "strings",
    "grad_dtype": "strings",
}
"""The same for attributes of frames."""

ADDED_LATER: Mapping[str, frozenset[str]] = {
    "frames": frozenset(ATTRIBUTES),
    "contexts": frozenset({"scaling", "data_parallel", "tensor_parallel", "pipeline_parallel"}),
}
"""Columns that an older trace may lack."""

TEXT = pa.dictionary(pa.int32(), pa.string())


def _attribute_type(name: str) -> pa.DataType:
    if name in CATALOG_OF_ATTRIBUTES:
        return TEXT
    return pa.from_numpy_dtype(np.dtype(ATTRIBUTES[name]))


_COLUMNS: Mapping[str, list[tuple[str, pa.DataType]]] = {
    "apis": [
        ("name", pa.string()),
        ("names", pa.list_(pa.string())),
        ("role", TEXT),
    ],
    "variables": [
        ("kind", TEXT),
        ("name", pa.string()),
        ("owner", TEXT),
        ("type", TEXT),
        ("module_type", TEXT),
        ("shape", pa.list_(pa.int64())),
    ],
    "contexts": [
        ("rank", pa.int32()),
        ("world_size", pa.int32()),
        ("step", pa.int64()),
        ("micro_step", pa.int32()),
        ("epoch", pa.int32()),
        ("stage", TEXT),
        ("grad_enabled", pa.bool_()),
        ("autocast", TEXT),
        ("steps_since_clear", pa.int32()),
        ("scaling", TEXT),
        ("annotations", pa.list_(pa.list_(pa.string(), 2))),
        ("data_parallel", pa.int32()),
        ("tensor_parallel", pa.int32()),
        ("pipeline_parallel", pa.int32()),
    ],
    "frames": [
        ("window", pa.int32()),
        ("call", pa.int64()),
        ("phase", TEXT),
        ("sequence", pa.int64()),
        ("context", pa.int32()),
        ("variables", pa.list_(pa.int32())),
        *((name, pa.list_(_attribute_type(name))) for name in ATTRIBUTES),
    ],
    "calls": [
        ("window", pa.int32()),
        ("call", pa.int64()),
        ("parent", pa.int64()),
        ("api", pa.int32()),
        ("object", TEXT),
        ("begin", pa.int64()),
        ("end", pa.int64()),
        ("begin_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("context", pa.int32()),
        ("source", TEXT),
        ("inputs", TEXT),
        ("outputs", TEXT),
        ("exception", TEXT),
        ("thread", pa.int32()),
    ],
}

STREAMS: Mapping[str, pa.Schema] = {
    stream: pa.schema(
        columns,
        metadata={STREAM_KEY: stream.encode(), VERSION_KEY: str(SCHEMA_VERSION).encode()},
    )
    for stream, columns in _COLUMNS.items()
}
"""The streams of a rank in the order in which a flush writes them."""


def file_name(stream: str) -> str:
    """Return the name of the file of *stream* in the directory of a rank."""
    return f"{stream}.arrow"
