"""Writes the trace of one rank in the background."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from traincheck_plugin.errors import TraceError
from traincheck_plugin.events import Window
from traincheck_plugin.trace.encode import CatalogSize
from traincheck_plugin.trace.manifest import END, MANIFEST, End, Manifest, Outcome, now
from traincheck_plugin.trace.storage import Place, one_line
from traincheck_plugin.trace.stream_writer import StreamsWriter

_MIN_SECONDS_WAITED = 0.1
"""Less is not worth a remark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """A window that waits to be written, with the catalog as it was when it came."""

    window: Window
    catalog: CatalogSize
    num_bytes: int
    since: float


class TraceWriter:
    """Writes the windows of one process to ``DIRECTORY/rank_N``.

    `write` hands a window to a thread and returns. Memory is bounded by *max_pending_bytes*: when
    the disk is slower than the training for so long that as much is waiting, `write` waits too;
    nothing is ever dropped. What was handed over is with the operating system *flush_seconds*
    later, so that killing the process loses no more than that. (An object store shows a file only
    when it is closed: there a killed process loses its trace.)

    If writing fails (disk full, say) the training goes on: what comes after is dropped, `problem`
    says why, and `close` raises it. In a forked child all methods do nothing.
    """

    def __init__(
        self,
        directory: str | Path,
        manifest: Manifest,
        *,
        rank: int = 0,
        flush_seconds: float = 1.0,
        flush_bytes: int = 8 << 20,
        max_pending_bytes: int = 64 << 20,
    ) -> None:
        """Create the directory and the files.

        Args:
            directory: of the run: a local path or a URI such as ``s3://bucket/runs/1``; created
                with its parents. All ranks give the same.
            manifest: what the run is; of several ranks, that of rank 0 is kept.
            rank: global rank of this process.
            flush_seconds: the longest time that a window waits.
            flush_bytes: write earlier when as much is waiting, and no more than that at once.
            max_pending_bytes: the most that may wait; more than *flush_bytes*.

        Raises:
            TraceError: the directory cannot be written, or holds a trace of this rank.
        """
        run = Place.of(directory)
        self._place = run / f"rank_{rank}"
        try:
            if found := self._place.children():
                raise TraceError(
                    f"{self._place.name} already holds a trace ({', '.join(found)}): "
                    "expected a new directory; choose another one, or delete it first"
                )
            self._place.make_directory()
            _write_manifest(run, manifest, rank)
            self._streams = StreamsWriter(self._place)
        except (OSError, pa.ArrowException) as error:
            raise TraceError(
                f"the trace cannot be written to {self._place.name}: {one_line(error)}; "
                "choose a directory that can be written to"
            ) from error
        self._flush_seconds = flush_seconds
        self._flush_bytes = flush_bytes
        self._max_pending_bytes = max_pending_bytes
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0  # of waiting windows and those being written
        self._closing = False
        self._closed = False
        self._problem = ""
        self._seconds_waited = 0.0
        self._thread = threading.Thread(target=self._run, name="traincheck-trace", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why the trace is incomplete, in one line; "" while all is well."""
        return self._problem

    @property
    def _slowness(self) -> str:
        if self._seconds_waited < _MIN_SECONDS_WAITED:
            return ""
        return (
            f"the training waited {self._seconds_waited:.1f} s for the trace to be written: "
            "nothing is missing, but a faster disk would help"
        )

    def write(self, window: Window) -> None:
        """Hand over the next window. Never raises; waits only as the class says."""
        if os.getpid() != self._process:
            return
        pending = _Pending(
            window=window,
            catalog=CatalogSize.of(window.catalog),
            num_bytes=num_bytes(window),
            since=time.monotonic(),
        )
        with self._changed:
            while self._pending_bytes and not self._fits(pending) and self._accepts():
                # Not forever: nobody notifies when the interpreter has ended the thread.
                begin = time.monotonic()
                self._changed.wait(1.0)
                self._seconds_waited += time.monotonic() - begin
            if not self._accepts():
                return
            self._pending.append(pending)
            self._pending_bytes += pending.num_bytes
            # One waking per flush is enough: the thread itself looks at the clock.
            if len(self._pending) == 1 or self._pending_bytes >= self._flush_bytes:
                self._changed.notify_all()

    def _fits(self, pending: _Pending) -> bool:
        return self._pending_bytes + pending.num_bytes <= self._max_pending_bytes

    def _accepts(self) -> bool:
        return not (self._problem or self._closing) and self._thread.is_alive()

    def close(self, outcome: Outcome | None = None, *, problems: Sequence[str] = ()) -> None:
        """Write what is pending and how the run ended. Again: does nothing.

        Args:
            outcome: how the run ended; by default it finished.
            problems: what could not be observed, a sentence each.

        Raises:
            TraceError: some of the trace could not be written.
        """
        if os.getpid() != self._process or self._closed:
            return
        self._closed = True
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        try:
            self._streams.close(complete=not self._problem)
        except (OSError, pa.ArrowException) as error:
            self._problem = self._problem or self._failure(error)
        end = End(
            ended=now(),
            outcome=outcome or Outcome(),
            num_windows=self._streams.num_windows,
            num_calls=self._streams.num_calls,
            num_frames=self._streams.num_frames,
            problems=tuple(filter(None, (*problems, self._slowness, self._problem))),
        )
        try:
            (self._place / END).write_text(end.to_json())
        except (OSError, pa.ArrowException) as error:
            self._problem = self._problem or self._failure(error)
        if self._problem:
            raise TraceError(self._problem)

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._streams.write([p.window for p in batch], stop=batch[-1].catalog)
                with self._changed:
                    self._pending_bytes -= sum(p.num_bytes for p in batch)
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  # the training must go on, whatever it is
            with self._changed:
                self._problem = self._failure(error)
                self._pending.clear()
                self._changed.notify_all()

    def _next_batch(self) -> list[_Pending]:
        """Wait until a flush is due and return what it writes; nothing at the end."""
        with self._changed:
            while not self._closing:
                if not self._pending:
                    self._changed.wait()
                    continue
                left = self._pending[0].since + self._flush_seconds - time.monotonic()
                if left <= 0 or self._pending_bytes >= self._flush_bytes:
                    break
                self._changed.wait(left)
            batch: list[_Pending] = []
            size = 0
            # A backlog becomes several flushes: the reader holds one at a time.
            while self._pending and size < self._flush_bytes:
                batch.append(self._pending.popleft())
                size += batch[-1].num_bytes
            return batch

    def _failure(self, error: BaseException) -> str:
        remedy = (
            "make room or choose another directory, and run again"
            if isinstance(error, OSError)
            else "this is a defect of traincheck-plugin, please report it"
        )
        return (
            f"the trace in {self._place.name} is incomplete after {self._streams.num_windows} "
            f"windows: {one_line(error)} ({type(error).__name__}); {remedy}"
        )


def num_bytes(window: Window) -> int:
    """Return about how much memory *window* takes."""
    calls = len(window.calls) * 88  # the width of CALL_COLUMNS
    frames = sum(
        200 + frame.variables.nbytes + sum(column.nbytes for column in frame.columns.values())
        for frame in window.frames
    )
    return 500 + calls + frames


def _write_manifest(run: Place, manifest: Manifest, rank: int) -> None:
    """Write the manifest of the run, unless a rank below has done so."""
    place = run / MANIFEST
    if not place.is_file():
        place.write_text(manifest.to_json())
        return
    earlier = Manifest.from_json(place.read_text(), place.name)
    if earlier.world_size != manifest.world_size:
        raise TraceError(
            f"{run.name} holds the trace of a run of {earlier.world_size} processes, and this one "
            f"has {manifest.world_size}: choose another directory, or delete it first"
        )
    if rank == 0:
        place.write_text(manifest.to_json())
