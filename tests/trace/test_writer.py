"""The writer as a guest in a training process: threads, limits, failures, forks and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.builders import RunBuilder, training_run
from tests.trace.sameness import assert_same_windows
from traincheck_plugin.errors import TraceError
from traincheck_plugin.trace import Manifest, Outcome, TraceWriter, open_run
from traincheck_plugin.trace.stream_writer import StreamsWriter
from traincheck_plugin.trace.writer import num_bytes

ROOT = Path(__file__).parents[2]


def wait_for(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk that takes nothing until the event is set."""
    event = threading.Event()
    write = StreamsWriter.write

    def slow(self: StreamsWriter, *args: object, **options: object) -> None:
        event.wait(30)
        write(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamsWriter, "write", slow)
    yield event
    event.set()


def read(directory: Path) -> list:
    return list(open_run(directory).ranks[0].windows())


def test_windows_are_on_disk_after_the_flush_interval(tmp_path: Path) -> None:
    windows = training_run(2)
    writer = TraceWriter(tmp_path, Manifest.here(), flush_seconds=0.05)
    for window in windows:
        writer.write(window)
    wait_for(lambda: len(read(tmp_path)) == 2)
    assert_same_windows(read(tmp_path), windows)
    writer.close()


def test_many_bytes_are_flushed_before_the_interval(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, Manifest.here(), flush_seconds=600, flush_bytes=1)
    writer.write(training_run(1)[0])
    wait_for(lambda: len(read(tmp_path)) == 1)
    writer.close()


def test_write_does_not_wait_for_the_disk(tmp_path: Path, gate: threading.Event) -> None:
    windows = training_run(50)
    writer = TraceWriter(tmp_path, Manifest.here(), flush_bytes=1)
    begin = time.monotonic()
    for window in windows:
        writer.write(window)
    assert time.monotonic() - begin < 1
    gate.set()
    writer.close()
    assert_same_windows(read(tmp_path), windows)


def test_a_full_queue_waits_and_drops_nothing(tmp_path: Path, gate: threading.Event) -> None:
    # GIVEN room for three windows and a disk that takes nothing
    windows = training_run(8)
    limit = 3 * num_bytes(windows[0]) + 10
    writer = TraceWriter(tmp_path, Manifest.here(), flush_bytes=1, max_pending_bytes=limit)
    handed_over = []

    def train() -> None:
        for window in windows:
            writer.write(window)
            handed_over.append(window)

    training = threading.Thread(target=train)
    training.start()
    # WHEN more windows come
    wait_for(lambda: len(handed_over) == 3)
    time.sleep(0.1)
    # THEN write waits, until the disk is there again
    assert len(handed_over) == 3
    gate.set()
    training.join(10)
    writer.close()
    assert_same_windows(read(tmp_path), windows)
    # and the trace says so
    end = open_run(tmp_path).ranks[0].end
    assert end is not None
    assert [problem.split(" for ")[1] for problem in end.problems] == [
        "the trace to be written: nothing is missing, but a faster disk would help"
    ]


def test_a_window_above_the_limit_is_written_all_the_same(tmp_path: Path) -> None:
    windows = training_run(3)
    writer = TraceWriter(tmp_path, Manifest.here(), flush_bytes=1, max_pending_bytes=1)
    for window in windows:
        writer.write(window)
    writer.close()
    assert_same_windows(read(tmp_path), windows)


def test_the_catalog_may_grow_while_it_is_written(tmp_path: Path) -> None:
    run = RunBuilder()
    writer = TraceWriter(tmp_path, Manifest.here(), flush_seconds=0.001, flush_bytes=5000)
    windows = []
    for step in range(300):
        run.at(step=step, stage="training")
        weights = run.parameters(f"layer{step}.weight")
        with run.calling(f"torch.f{step}", source=f"train.py:{step} in train"):
            run.frame("end", weights, data=step, dtype=f"torch.type{step}")
        windows.append(run.window())
        writer.write(windows[-1])
    writer.close()
    assert_same_windows(read(tmp_path), windows)


def test_a_full_disk_is_told_once_and_never_by_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a disk that is full after the second flush
    windows = training_run(40)
    write = StreamsWriter.write

    def full(self: StreamsWriter, *args: object, **options: object) -> None:
        if self.num_windows >= 2:
            raise OSError(28, "No space left on device")
        write(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(StreamsWriter, "write", full)
    writer = TraceWriter(tmp_path, Manifest.here(), flush_bytes=1, max_pending_bytes=5000)
    # WHEN the training goes on
    for window in windows:
        writer.write(window)
        time.sleep(0.001)
    # THEN only close raises, and what was written can be read
    assert "No space left on device" in writer.problem
    with pytest.raises(TraceError, match=r"is incomplete after .* windows: .*No space left"):
        writer.close()
    writer.close()
    [trace] = open_run(tmp_path).ranks
    found = list(trace.windows())
    assert len(found) >= 2
    assert_same_windows(found, windows[: len(found)])
    assert trace.end is not None
    assert trace.end.problems == (writer.problem,)
    assert trace.end.num_windows == len(found)


def test_a_disk_that_fails_at_close_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TraceWriter(tmp_path, Manifest.here())

    def full(*_: object, **__: object) -> None:
        raise pa.ArrowException("disk quota exceeded")

    monkeypatch.setattr(StreamsWriter, "close", full)
    with pytest.raises(TraceError, match="disk quota exceeded"):
        writer.close()


def test_a_window_over_another_catalog_is_refused(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, Manifest.here())
    writer.write(training_run(1)[0])
    writer.write(training_run(1)[0])
    with pytest.raises(TraceError, match="one catalog"):
        writer.close()


def test_closing_twice_and_writing_after_is_harmless(tmp_path: Path) -> None:
    [window] = training_run(1)
    writer = TraceWriter(tmp_path, Manifest.here())
    writer.write(window)
    writer.close(Outcome(how="interrupted", detail="SIGINT"))
    writer.close()
    writer.write(window)
    assert len(read(tmp_path)) == 1
    end = open_run(tmp_path).ranks[0].end
    assert end is not None
    assert end.outcome == Outcome(how="interrupted", detail="SIGINT")


def test_close_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    TraceWriter(tmp_path, Manifest.here()).close()
    assert set(threading.enumerate()) == before


def test_an_earlier_trace_is_not_overwritten(tmp_path: Path) -> None:
    TraceWriter(tmp_path, Manifest.here()).close()
    with pytest.raises(TraceError) as caught:
        TraceWriter(tmp_path, Manifest.here())
    assert str(caught.value) == (
        f"{tmp_path}/rank_0 already holds a trace (apis.arrow, calls.arrow, contexts.arrow, "
        "end.json, frames.arrow, variables.arrow): expected a new directory; choose another one, "
        "or delete it first"
    )


def test_a_rank_of_another_run_is_refused(tmp_path: Path) -> None:
    TraceWriter(tmp_path, Manifest.here(world_size=1)).close()
    with pytest.raises(TraceError, match="a run of 1 processes, and this one has 2: choose"):
        TraceWriter(tmp_path, Manifest.here(world_size=2), rank=1)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TraceError, match=r"the trace cannot be written to .*; choose a directory"):
        TraceWriter(tmp_path / "file" / "run", Manifest.here())


def run_script(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_loses_its_last_flush_interval_at_most(tmp_path: Path) -> None:
    # GIVEN a process that hands over a window each 10 ms and says when
    process = run_script(
        """
        import sys, time
        from tests.builders import RunBuilder
        from traincheck_plugin.trace import Manifest, TraceWriter

        run = RunBuilder()
        parameters = run.parameters("fc.weight", "fc.bias")
        writer = TraceWriter(sys.argv[1], Manifest.here(), flush_seconds=0.5)
        while True:
            writer.write(run.training_step(parameters, num_functions=20))
            print(time.monotonic(), flush=True)
            time.sleep(0.01)
        """,
        str(tmp_path / "run"),
    )
    assert process.stdout is not None
    handed_over = [float(process.stdout.readline())]
    # WHEN it is killed
    while handed_over[-1] - handed_over[0] < 2.5:
        handed_over.append(float(process.stdout.readline()))
    killed = time.monotonic()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    # THEN all that is older than the interval (and as much again, for a busy machine) is there
    [trace] = open_run(tmp_path / "run").ranks
    windows = list(trace.windows())
    assert len(windows) >= sum(moment < killed - 1 for moment in handed_over)
    assert [window.index for window in windows] == list(range(len(windows)))
    assert trace.end is None
    assert trace.problems[0].endswith("the process was killed or is still writing")


def test_a_forked_child_writes_nothing(tmp_path: Path) -> None:
    process = run_script(
        """
        import os, sys
        from tests.builders import training_run
        from traincheck_plugin.trace import Manifest, TraceWriter

        windows = training_run(6)
        writer = TraceWriter(sys.argv[1], Manifest.here(), flush_bytes=1, max_pending_bytes=1)
        writer.write(windows[0])
        child = os.fork()
        if child == 0:
            for window in windows:
                writer.write(window)
            writer.close()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for window in windows[1:]:
            writer.write(window)
        writer.close()
        """,
        str(tmp_path / "run"),
    )
    process.communicate(timeout=60)
    assert process.returncode == 0
    [trace] = open_run(tmp_path / "run").ranks
    assert [window.index for window in trace.windows()] == [0, 1, 2, 3, 4, 5]
    assert trace.problems == []
