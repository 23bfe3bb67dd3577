"""Progress of long work: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[str, float], None]
"""Told what is being done, and which part of it is done: from 0 to 1."""

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield what long work is to call as it goes on."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(stream) as progress:
            yield progress
    else:
        yield PlainProgress(stream)


class PlainProgress:
    """Writes a line when something else is being done, and one every ten seconds."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._activity = ""
        self._written = 0.0

    def __call__(self, activity: str, fraction: float) -> None:
        now = self._clock()
        if activity != self._activity:
            line = f"{activity} ..."
        elif now - self._written >= SECONDS_BETWEEN_LINES:
            line = f"{activity}: {fraction:.0%}"
        else:
            return
        self._activity, self._written = activity, now
        print(line, file=self._stream, flush=True)


@contextmanager
def _bar(stream: TextIO) -> Iterator[Progress]:
    # Imported here: `--help` has no use for it.
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=True,
    ) as bars:
        task = bars.add_task("", total=1.0)
        yield lambda activity, fraction: bars.update(
            task, description=escape(activity), completed=fraction
        )
