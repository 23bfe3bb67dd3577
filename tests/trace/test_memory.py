"""Neither writer nor reader holds more than some flushes, however long the trace is."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from tests.builders import RunBuilder
from traincheck_plugin import stacks
from traincheck_plugin.trace import Manifest, TraceWriter, open_run


def write_long(directory: Path, num_windows: int) -> None:
    """Write windows of one epoch over and over, so that the catalog stays the same."""
    run = RunBuilder()
    parameters = run.parameters(*(f"layer{number}.weight" for number in range(50)))
    writer = TraceWriter(directory, Manifest.here(), flush_bytes=200_000)
    for number in range(num_windows):
        run.at(step=number % 10)
        writer.write(run.training_step(parameters, num_functions=50))
    writer.close()


def peak_while_reading(directory: Path) -> tuple[int, int, int]:
    [trace] = open_run(directory).ranks
    pool = pa.system_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    arrow = num_windows = 0
    for _ in trace.windows():
        num_windows += 1
        arrow = max(arrow, pool.bytes_allocated())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return num_windows, peak, arrow


def test_memory_does_not_grow_with_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the whole of the short one is less than a stretch.
    monkeypatch.setattr(stacks, "MAX_CALLS", 1000)
    default = pa.default_memory_pool()
    try:
        write_long(tmp_path / "short", 60)
        write_long(tmp_path / "long", 600)
        peak_while_reading(tmp_path / "short")  # what is loaded once
        short, short_peak, short_arrow = peak_while_reading(tmp_path / "short")
        long, long_peak, long_arrow = peak_while_reading(tmp_path / "long")
    finally:
        pa.set_memory_pool(default)
    assert (short, long) == (60, 600)
    assert long_peak < 1.5 * short_peak
    assert 0 < long_arrow < 1.5 * short_arrow
