"""Writes told runs to disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from traincheck_plugin.events import Window
from traincheck_plugin.trace.manifest import Manifest
from traincheck_plugin.trace.reader import Run, open_run
from traincheck_plugin.trace.writer import TraceWriter


def recorded(directory: Path, windows: Iterable[Window], script: str = "train.py") -> Run:
    """Return the run of one process that did what *windows* tell."""
    writer = TraceWriter(directory, Manifest.here(script=script))
    for window in windows:
        writer.write(window)
    writer.close()
    return open_run(directory)
