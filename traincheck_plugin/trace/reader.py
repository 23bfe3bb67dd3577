"""Reads traces back, window by window."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pyarrow as pa

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import TraceError
from traincheck_plugin.events import Window
from traincheck_plugin.plan import Plan
from traincheck_plugin.stacks import stretches
from traincheck_plugin.trace.decode import decode
from traincheck_plugin.trace.manifest import END, MANIFEST, End, Manifest
from traincheck_plugin.trace.schema import STREAMS, file_name
from traincheck_plugin.trace.storage import Place, one_line
from traincheck_plugin.trace.stream_reader import POLL_SECONDS, Growing, StreamReader, check_stream

RANK_DIRECTORY = re.compile(r"rank_(\d+)")
MAX_NAMES = 6  # how many of the files found an error lists


class RankTrace:
    """The trace of one process.

    Attributes:
        rank: global rank of the process.
        path: of its directory.
        problems: what the last iteration of `windows` could not read, a sentence each; whole
            after it ends.
    """

    def __init__(self, directory: Place, rank: int) -> None:
        self.rank = rank
        self.path = directory.name
        self.problems: list[str] = []
        self._directory = directory
        self._end: End | None = None

    def __repr__(self) -> str:
        return f"RankTrace(rank={self.rank}, path={self.path!r})"

    @property
    def end(self) -> End | None:
        """How the run ended; None for one that was killed or still runs.

        Raises:
            TraceError: the file that says so is something else.
        """
        if self._end is None:
            place = self._directory / END
            if place.is_file():
                self._end = End.from_json(place.read_text(), place.name)
        return self._end

    @property
    def is_success(self) -> bool:
        """Whether the run did all that it was meant to do, and all of it could be read."""
        return self.end is not None and self.end.outcome.is_success and not self.problems

    def windows(
        self, *, follow: bool = False, stop: Callable[[], bool] | None = None
    ) -> Iterator[Window]:
        """Yield the windows one by one; otherwise the same as `stretches`."""
        stretches_ = self.stretches(follow=follow, stop=stop)
        return chain.from_iterable(stretch.parts for stretch in stretches_)

    def stretches(
        self, *, follow: bool = False, stop: Callable[[], bool] | None = None
    ) -> Iterator[Window]:
        """Yield the windows in order, joined into stretches, with one new catalog.

        What is held at a time is bounded. As long as no optimizer has stepped, and when a trace is
        followed, each flush is a stretch.

        Args:
            follow: at the end of a trace without an end, wait for more until it has one. Only
                for local files.
            stop: asked while waiting; True ends the iteration.

        Raises:
            TraceError: *follow* for a trace that is not local.
        """
        if follow and not self._directory.is_local:
            raise TraceError(
                f"{self.path} cannot be followed: expected a local directory; an object store "
                "shows a trace when it is closed, check it then without --follow"
            )

        end = self._directory / END

        def growing() -> bool:
            return not end.is_file() and not (stop is not None and stop())

        self.problems = []
        flushes = self._read(growing if follow else None)
        return flushes if follow else stretches(flushes)

    def _read(self, growing: Growing | None) -> Iterator[Window]:
        readers = [StreamReader(self._directory, stream, growing) for stream in STREAMS]
        catalog = Catalog()
        progress = _Progress()
        damage = ""
        try:
            while True:
                flush = [reader.next() for reader in readers]
                if any(part is None for part in flush):
                    break
                parts = [part for part in flush if part is not None]
                batches = {s: batch for s, (batch, _) in zip(STREAMS, parts, strict=True)}
                try:
                    windows = decode(batches, parts[-1][1], catalog, rank=self.rank)
                except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
                    damage = f"{self._directory.base} is damaged ({one_line(error)})"
                    break
                for window in windows:
                    progress.add(window)
                    yield window
                windows.clear()
        finally:
            for reader in readers:
                reader.close()
        short = [r for r, part in zip(readers, flush, strict=True) if part is None]
        cut = [r for r in short if r.is_cut] or (short if len(short) < len(readers) else [])
        if not damage and cut:
            damage = f"{cut[0].name} is cut in the middle"
        while not damage and growing is not None and growing():
            time.sleep(POLL_SECONDS)  # the streams have ended, how the run did is written last
        self._report(damage, progress)

    def _report(self, damage: str, progress: _Progress) -> None:
        try:
            end = self.end
        except TraceError as error:
            self.problems.append(str(error))
            end = None
        if end is None:
            damage = damage or f"{self._directory.base} has no {END}"
            why = "the process was killed or is still writing"
        elif damage or progress.num_windows != end.num_windows:
            damage = damage or f"{self._directory.base} is shorter than its {END} says"
            why = f"the run wrote {end.num_windows}, copy or collect the trace again"
        else:
            return
        self.problems.append(f"{damage}: recovered {progress}; {why}")


@dataclass(slots=True)
class _Progress:
    """How far a reader came."""

    num_windows: int = 0
    step: int | None = None

    def add(self, window: Window) -> None:
        self.num_windows += window.num_parts
        if len(window.calls):
            self.step = window.catalog.contexts[int(window.calls.context[-1])].step

    def __str__(self) -> str:
        windows = "1 window" if self.num_windows == 1 else f"{self.num_windows} windows"
        return windows if self.step is None else f"{windows} up to step {self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The traces of all processes of a run.

    Attributes:
        path: of the directory, as it was given.
        manifest: what the run was.
        ranks: in order; at least one.
        problems: what is missing, a sentence each.
    """

    path: str
    manifest: Manifest
    ranks: tuple[RankTrace, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def plan(self) -> Plan:
        """What was observed.

        Raises:
            TraceError: the manifest tells it in a way that this version does not understand.
        """
        if not self.manifest.plan:
            return Plan.full()
        try:
            return Plan.from_json(self.manifest.plan)
        except ValueError as error:
            raise TraceError(
                f"the {MANIFEST} of {self.path} does not tell what was observed: {error}; "
                "collect the trace again"
            ) from error


def open_run(path: str | Path) -> Run:
    """Open the trace in the directory of a run, or in that of one rank.

    Raises:
        TraceError: there is no trace that this version can read.
    """
    place = Place.of(path)
    try:
        return _open_run(place, str(path))
    except (OSError, pa.ArrowException) as error:
        raise TraceError(
            f"{path} cannot be read: {one_line(error)}; check the path and that you may read it"
        ) from error


def _open_run(place: Place, path: str) -> Run:
    if not place.is_directory():
        found = "a file" if place.is_file() else "nothing there"
        raise TraceError(
            f"{path} is not a trace: expected the directory of a run, got {found}; "
            "check the path, or collect a trace with traincheck-collect --output-dir"
        )
    names = place.children()
    match = RANK_DIRECTORY.fullmatch(place.base)
    if match and any(file_name(stream) in names for stream in STREAMS):
        run, directories = place.parent, {int(match[1]): place}
    else:
        run = place
        directories = {
            int(match[1]): place / name
            for name in names
            if (match := RANK_DIRECTORY.fullmatch(name))
        }
    problems = []
    manifest = Manifest(world_size=len(directories))
    if (run / MANIFEST).is_file():
        manifest = Manifest.from_json((run / MANIFEST).read_text(), (run / MANIFEST).name)
    else:
        problems.append(f"{run.name} has no {MANIFEST}: versions, command and host are unknown")
    if not directories:
        raise TraceError(
            f"{path} holds no trace: expected {MANIFEST} and a directory rank_0, found "
            f"{_list(names)}; check the path, or collect a trace with "
            "traincheck-collect --output-dir"
        )
    began = set(directories)
    directories, unreadable = _readable(directories)
    problems += unreadable
    missing = [rank for rank in range(manifest.world_size) if rank not in began]
    if missing and run is place:
        problems.append(
            f"{path} has no trace of rank {_list(missing)}: the run had {manifest.world_size} "
            "processes"
        )
    return Run(
        path=path,
        manifest=manifest,
        ranks=tuple(RankTrace(directories[rank], rank) for rank in sorted(directories)),
        problems=tuple(problems),
    )


def _readable(directories: Mapping[int, Place]) -> tuple[dict[int, Place], list[str]]:
    """Return the ranks that can be read, and what is wrong with others.

    A rank may have died before it wrote anything: that must not hide what the others wrote.

    Raises:
        TraceError: none can be read.
    """
    readable, errors = {}, []
    for rank, directory in directories.items():
        try:
            _check_files(directory)
        except TraceError as error:
            errors.append(error)
        else:
            readable[rank] = directory
    if not readable:
        raise errors[0]
    return readable, [str(error) for error in errors]


def _check_files(directory: Place) -> None:
    names = directory.children()
    missing = [file_name(stream) for stream in STREAMS if file_name(stream) not in names]
    if missing:
        raise TraceError(
            f"{directory.name} is not a whole trace: expected "
            f"{_list([file_name(stream) for stream in STREAMS])}, but {_list(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; copy the whole directory, or collect "
            "the trace again"
        )
    for stream in STREAMS:
        check_stream(directory, stream)


def _list(names: Iterable[object]) -> str:
    items = [str(name) for name in names]
    if not items:
        return "nothing"
    more = len(items) - MAX_NAMES
    return ", ".join(items[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
