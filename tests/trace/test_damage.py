"""Traces that end early or are broken: what is whole is read, what is not is said."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import training_run
from tests.trace.sameness import assert_same_windows
from traincheck_plugin.errors import TraceError
from traincheck_plugin.events import Window
from traincheck_plugin.trace import Manifest, TraceWriter, open_run
from traincheck_plugin.trace.encode import CatalogSize
from traincheck_plugin.trace.schema import STREAMS, file_name
from traincheck_plugin.trace.storage import Place
from traincheck_plugin.trace.stream_writer import StreamsWriter

WINDOWS = training_run(6, num_functions=3)
FILES = [file_name(stream) for stream in STREAMS]


@pytest.fixture
def rank_directory(tmp_path: Path) -> Iterator[Path]:
    """A trace of `WINDOWS`, two in each flush, of a process that did not close it."""
    TraceWriter(tmp_path, Manifest.here()).close()
    directory = tmp_path / "rank_0"
    shutil.rmtree(directory)
    directory.mkdir()
    streams = StreamsWriter(Place.of(directory))
    for first in range(0, len(WINDOWS), 2):
        streams.write(WINDOWS[first : first + 2], stop=CatalogSize.of(WINDOWS[0].catalog))
    yield directory
    streams.close(complete=False)


def read(rank_directory: Path) -> tuple[list[Window], list[str]]:
    [trace] = open_run(rank_directory.parent).ranks
    return list(trace.windows()), trace.problems


def test_a_trace_without_end_is_whole_but_says_so(rank_directory: Path) -> None:
    windows, problems = read(rank_directory)
    assert_same_windows(windows, WINDOWS)
    assert problems == [
        "rank_0 has no end.json: recovered 6 windows up to step 5; "
        "the process was killed or is still writing"
    ]


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_anywhere_gives_the_windows_before_the_cut(
    file: str, rank_directory: Path
) -> None:
    whole = (rank_directory / file).read_bytes()
    generator = random.Random(file)  # noqa: S311  # where to cut is no secret
    cuts = {0, 1, 4, 7, 8, 9, len(whole) - 1, *generator.sample(range(len(whole)), 120)}
    numbers = set()
    for cut in sorted(cuts):
        (rank_directory / file).write_bytes(whole[:cut])
        windows, problems = read(rank_directory)
        assert_same_windows(windows, WINDOWS[: len(windows)])
        assert len(windows) < len(WINDOWS)
        [problem] = problems
        assert problem.startswith(f"rank_0/{file} is cut in the middle: recovered {len(windows)} ")
        assert problem.endswith("the process was killed or is still writing")
        numbers.add(len(windows))
    assert numbers == {0, 2, 4}


def test_the_problem_says_how_far_it_came(rank_directory: Path) -> None:
    calls = rank_directory / "calls.arrow"
    calls.write_bytes(calls.read_bytes()[:-10])
    assert read(rank_directory)[1] == [
        "rank_0/calls.arrow is cut in the middle: recovered 4 windows up to step 3; "
        "the process was killed or is still writing"
    ]


@pytest.mark.parametrize("file", FILES)
def test_damaged_bytes_never_end_in_a_traceback(file: str, rank_directory: Path) -> None:
    whole = (rank_directory / file).read_bytes()
    generator = random.Random(file)  # noqa: S311
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(generator.choice([1, 8])):
            broken[generator.randrange(len(broken))] ^= generator.randrange(1, 256)
        (rank_directory / file).write_bytes(broken)
        try:
            windows, problems = read(rank_directory)
        except TraceError as error:
            told, windows = str(error), []
        else:
            [told] = problems
        assert "rank_0" in told
        assert len(windows) <= len(WINDOWS)


def test_a_file_of_another_trace_is_noticed(rank_directory: Path, tmp_path: Path) -> None:
    other = StreamsWriter(Place.of(tmp_path))
    windows = training_run(6, num_functions=1)
    for first in range(0, 6, 2):
        other.write(windows[first : first + 2], stop=CatalogSize.of(windows[0].catalog))
    other.close(complete=True)
    shutil.copy(tmp_path / "calls.arrow", rank_directory / "calls.arrow")
    shutil.copy(tmp_path / "apis.arrow", rank_directory / "apis.arrow")
    (rank_directory / "contexts.arrow").write_bytes((tmp_path / "variables.arrow").read_bytes())
    with pytest.raises(TraceError, match=r"contexts\.arrow is not part of a trace: .*'variables'"):
        open_run(tmp_path)


def test_a_closed_trace_that_was_copied_in_part_says_what_is_missing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, Manifest.here(), flush_bytes=1)
    for window in WINDOWS:
        writer.write(window)
    writer.close()
    frames = tmp_path / "rank_0" / "frames.arrow"
    frames.write_bytes(frames.read_bytes()[:-100])
    windows, [problem] = read(tmp_path / "rank_0")
    assert len(windows) < 6
    step = f" up to step {len(windows) - 1}" if windows else ""
    assert problem == (
        f"rank_0/frames.arrow is cut in the middle: recovered {len(windows)} windows{step}; "
        "the run wrote 6, copy or collect the trace again"
    )


def test_a_broken_end_is_a_problem_and_not_the_end(rank_directory: Path) -> None:
    (rank_directory / "end.json").write_text('{"ended": "2026-01-01", "outc')
    windows, problems = read(rank_directory)
    assert_same_windows(windows, WINDOWS)
    assert "end.json is not the end of a trace: expected a JSON object" in problems[0]
    assert "recovered 6 windows" in problems[1]


def test_an_entry_that_is_there_twice_keeps_both_codes(tmp_path: Path) -> None:
    windows = training_run(2)
    catalog = windows[0].catalog
    # Such as a recorder wrote that took two of them for different.
    for interner in (catalog.apis, catalog.variables):
        interner.append(interner[0])
        interner.code(replace(interner[0], name="after"))
    with contextlib.closing(TraceWriter(tmp_path, Manifest.here())) as writer:
        for window in windows:
            writer.write(window)

    [trace] = open_run(tmp_path).ranks
    found = list(trace.windows())

    assert trace.problems == []
    assert_same_windows(found, windows)
    for name in ("apis", "variables"):
        written, read_again = getattr(catalog, name), getattr(found[0].catalog, name)
        assert list(read_again) == list(written)
        assert read_again.find(written[0]) == 0
