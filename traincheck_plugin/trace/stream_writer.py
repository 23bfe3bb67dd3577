"""The five Arrow streams of one rank, as one thing to append to."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Window
from traincheck_plugin.trace.encode import CatalogSize, encode
from traincheck_plugin.trace.schema import STREAMS, file_name
from traincheck_plugin.trace.storage import Place


class StreamsWriter:
    """Appends flushes of windows to the streams in one directory.

    Attributes:
        num_windows, num_calls, num_frames: of all complete flushes.
    """

    def __init__(self, directory: Place) -> None:
        self.num_windows = self.num_calls = self.num_frames = 0
        self._catalog: Catalog | None = None
        self._written = CatalogSize()
        # One thread: the cores belong to the training.
        options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
        self._files = []
        self._writers = {}
        for stream, schema in STREAMS.items():
            place = directory / file_name(stream)
            # Without a buffer of its own: what is written is with the operating system.
            file = place.filesystem.open_output_stream(place.path, compression=None)
            self._files.append(file)
            self._writers[stream] = pa.ipc.new_stream(file, schema, options=options)

    def write(self, windows: Sequence[Window], *, stop: CatalogSize) -> None:
        """Append *windows* as one flush; the catalog up to *stop* becomes part of the trace.

        Raises:
            ValueError: the windows of this trace are not all over one catalog.
        """
        self._catalog = self._catalog or windows[0].catalog
        if any(window.catalog is not self._catalog for window in windows):
            raise ValueError("the windows of one trace need one catalog, and these have several")
        batches = list(encode(windows, start=self._written, stop=stop))
        for stream, batch, metadata in batches:
            self._writers[stream].write_batch(batch, custom_metadata=metadata)
        self._written = stop
        self.num_windows += len(windows)
        self.num_calls += sum(len(window.calls) for window in windows)
        self.num_frames += sum(len(window.frames) for window in windows)

    def close(self, *, complete: bool) -> None:
        """Close the files; *complete* ones, that no failure cut, get their end mark first."""
        try:
            if complete:
                for writer in self._writers.values():
                    writer.close()
        finally:
            for file in self._files:
                file.close()
