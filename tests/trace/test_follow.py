"""Reading a trace that is still being written."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.builders import training_run
from tests.trace.sameness import assert_same_windows
from traincheck_plugin.errors import TraceError
from traincheck_plugin.trace import Manifest, RankTrace, TraceWriter, open_run
from traincheck_plugin.trace.storage import Place


def test_following_yields_each_window_soon_and_ends_with_the_run(tmp_path: Path) -> None:
    windows = training_run(8, num_functions=30)
    writer = TraceWriter(tmp_path, Manifest.here(), flush_seconds=0.01)
    [trace] = open_run(tmp_path).ranks
    followed = trace.windows(follow=True)
    found = []
    for window in windows:
        writer.write(window)
        found.append(next(followed))  # before the next one is written
    threading.Timer(0.2, writer.close).start()
    found += followed
    assert_same_windows(found, windows)
    assert trace.problems == []


def test_following_a_run_that_has_ended_is_reading_it(tmp_path: Path) -> None:
    windows = training_run(3)
    writer = TraceWriter(tmp_path, Manifest.here())
    for window in windows:
        writer.write(window)
    writer.close()
    [trace] = open_run(tmp_path).ranks
    assert_same_windows(list(trace.windows(follow=True)), windows)


def test_following_stops_when_told(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, Manifest.here(), flush_bytes=1)
    for window in training_run(2):
        writer.write(window)
    deadline = time.monotonic() + 1
    [trace] = open_run(tmp_path).ranks
    found = list(trace.windows(follow=True, stop=lambda: time.monotonic() > deadline))
    assert len(found) == 2
    [problem] = trace.problems
    assert problem.endswith("the process was killed or is still writing")
    writer.close()


def test_a_batch_that_arrives_in_pieces_is_waited_for(tmp_path: Path) -> None:
    # GIVEN a whole trace and a copy that grows byte by byte
    windows = training_run(3)
    writer = TraceWriter(tmp_path / "whole", Manifest.here())
    for window in windows:
        writer.write(window)
    writer.close()
    source, copy = tmp_path / "whole" / "rank_0", tmp_path / "copy" / "rank_0"
    copy.mkdir(parents=True)
    contents = {file.name: file.read_bytes() for file in source.glob("*.arrow")}
    for name in contents:
        (copy / name).touch()

    def grow() -> None:
        for name, content in contents.items():
            for begin in range(0, len(content), 1500):
                with (copy / name).open("ab") as file:
                    file.write(content[begin : begin + 1500])
                time.sleep(0.02)
        (copy / "end.json").write_bytes((source / "end.json").read_bytes())

    growing = threading.Thread(target=grow)
    growing.start()
    # WHEN the copy is followed THEN nothing is lost
    [trace] = open_run(copy).ranks
    assert_same_windows(list(trace.windows(follow=True)), windows)
    assert trace.problems == []
    growing.join()


def test_an_interrupt_while_waiting_gets_through(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, Manifest.here())

    def interrupt() -> bool:
        raise KeyboardInterrupt

    [trace] = open_run(tmp_path).ranks
    with pytest.raises(KeyboardInterrupt):
        next(trace.windows(follow=True, stop=interrupt))
    writer.close()


def test_what_is_not_local_cannot_be_followed() -> None:
    place = Place(filesystem=object(), path="bucket/run/rank_0", name="s3://bucket/run/rank_0")
    with pytest.raises(TraceError, match="cannot be followed: expected a local directory"):
        RankTrace(place, 0).windows(follow=True)
