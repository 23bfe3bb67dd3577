"""Traces of healthy and of broken runs for the commands to work on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from traincheck_plugin.events import Window
from traincheck_plugin.trace.manifest import Manifest
from traincheck_plugin.trace.writer import TraceWriter


def write_trace(path: Path, windows: Iterable[Window], *, world_size: int = 1) -> Path:
    """Write the trace of a run whose only recorded rank is rank 0."""
    manifest = Manifest.here(script="train.py", command=("train.py",), world_size=world_size)
    writer = TraceWriter(path, manifest)
    for window in windows:
        writer.write(window)
    writer.close()
    return path
