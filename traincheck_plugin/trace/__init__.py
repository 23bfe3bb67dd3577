"""Traces: the windows of a run on disk, one directory per run, one subdirectory per rank."""

from traincheck_plugin.trace.manifest import End, Manifest, Outcome
from traincheck_plugin.trace.reader import RankTrace, Run, open_run
from traincheck_plugin.trace.writer import TraceWriter

__all__ = ["End", "Manifest", "Outcome", "RankTrace", "Run", "TraceWriter", "open_run"]
