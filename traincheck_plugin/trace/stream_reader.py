"""One Arrow stream of a rank, read batch by batch, also while it grows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from traincheck_plugin.errors import TraceError
from traincheck_plugin.trace.manifest import check_version
from traincheck_plugin.trace.schema import ADDED_LATER, STREAM_KEY, STREAMS, VERSION_KEY, file_name
from traincheck_plugin.trace.storage import Place, one_line

CONTINUATION = b"\xff\xff\xff\xff"  # begins each message of an Arrow stream
MAX_HEADER_BYTES = 1 << 20
POLL_SECONDS = 0.1

Growing = Callable[[], bool]
"""Says whether more may be written, so that a reader should wait for it."""


class StreamReader:
    """Reads the batches of one stream.

    Attributes:
        name: ``rank_0/calls.arrow``.
        is_cut: whether what came last was not a whole batch.
    """

    def __init__(self, directory: Place, stream: str, growing: Growing | None = None) -> None:
        self.name = f"{directory.base}/{file_name(stream)}"
        self.is_cut = False
        self._place = directory / file_name(stream)
        self._growing = growing
        self._reader: Any = None
        self._file: Any = None

    def next(self) -> tuple[pa.RecordBatch, dict[bytes, bytes]] | None:
        """Return the next batch and its metadata, or None where the whole batches end."""
        if self.is_cut:
            return None
        try:
            if self._reader is None:
                self._file = self._open()
                self._reader = pa.ipc.open_stream(
                    self._file, options=pa.ipc.IpcReadOptions(use_threads=False)
                )
            batch, metadata = self._reader.read_next_batch_with_custom_metadata()
            # Lengths and indices of a damaged batch would lead outside its memory.
            batch.validate(full=True)
        except StopIteration:
            return None
        except (pa.ArrowException, OSError, ValueError):
            self.is_cut = True
            return None
        return batch, dict(metadata or {})

    def _open(self) -> Any:
        if self._growing is None:
            return self._place.filesystem.open_input_stream(self._place.path, compression=None)
        return pa.PythonFile(_GrowingFile(self._place.path, self._growing), mode="r")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _GrowingFile:
    """A local file whose end is waited for."""

    def __init__(self, path: str, growing: Growing) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        self._growing = growing

    @property
    def closed(self) -> bool:
        return self._file.closed

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        growing = True
        while len(data) < size and growing:
            # Asked before reading: what was written until then is read.
            growing = self._growing()
            more = self._file.read(size - len(data))
            data += more
            if growing and not more:
                time.sleep(POLL_SECONDS)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self._file.close()


def check_stream(directory: Place, stream: str) -> None:
    """Raise `TraceError` if the file of *stream* is there but is not such a stream.

    A file that ends before its schema does is none of that: a killed process leaves it.
    """
    place = directory / file_name(stream)
    try:
        with place.filesystem.open_input_stream(place.path, compression=None) as file:
            start = file.read(8)
            length = int.from_bytes(start[4:8], "little")
            if not CONTINUATION.startswith(start[:4]) or length > MAX_HEADER_BYTES:
                raise _foreign(place, stream, "something else")
            header = file.read(length)
    except OSError as error:
        raise TraceError(
            f"{place.name} cannot be read: {one_line(error)}; check that you may read it"
        ) from error
    if len(start) < 8 or len(header) < length:
        return
    try:
        _check_schema(place, stream, pa.ipc.read_schema(pa.py_buffer(start + header)))
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names not in UTF-8
        raise _foreign(place, stream, "something else") from error


def _check_schema(place: Place, stream: str, schema: pa.Schema) -> None:
    metadata = schema.metadata or {}
    if STREAM_KEY not in metadata:
        columns = ", ".join(schema.names[:8])
        raise _foreign(place, stream, f"an Arrow stream of something else, with columns {columns}")
    if metadata[STREAM_KEY] != stream.encode():
        raise _foreign(place, stream, f"the stream of {metadata[STREAM_KEY].decode()!r}")
    version = metadata.get(VERSION_KEY, b"")
    if not version.isdigit():
        raise _foreign(place, stream, f"one with schema version {version.decode()!r}")
    check_version(int(version), place.name)
    for field in STREAMS[stream]:
        if field.name in schema.names:
            if schema.field(field.name).type != field.type:
                found = schema.field(field.name).type
                raise _foreign(place, stream, f"one whose {field.name!r} is {found}")
        elif field.name not in ADDED_LATER.get(stream, ()):
            raise _foreign(place, stream, f"one without the column {field.name!r}")


def _foreign(place: Place, stream: str, found: str) -> TraceError:
    return TraceError(
        f"{place.name} is not part of a trace: expected the Arrow stream of {stream!r} that a "
        f"recorder writes, got {found}; restore the file or collect the trace again"
    )
