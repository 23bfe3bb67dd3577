from __future__ import annotations

import json
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import RunBuilder, tensor, training_run
from tests.trace.sameness import assert_same_windows
from tests.trace.strategies import runs
from traincheck_plugin.events import ATTRIBUTES, CALL_COLUMNS, Frame, Window
from traincheck_plugin.trace import Manifest, Outcome, TraceWriter, open_run
from traincheck_plugin.trace.schema import STREAMS
from traincheck_plugin.vocabulary import Api, Context, Variable


def write(directory: Path, windows: list[Window], rank: int = 0, **options: float) -> None:
    writer = TraceWriter(directory, Manifest.here(), rank=rank, **options)
    for window in windows:
        writer.write(window)
    writer.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs(), st.sampled_from([1, 3000, 1 << 20]))
def test_what_is_written_is_read(windows: list[Window], flush_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), windows, rank=3, flush_bytes=flush_bytes)
        [trace] = open_run(directory).ranks
        found = list(trace.windows())
        assert_same_windows(found, windows)
        assert trace.problems == []
        assert trace.end is not None
        assert trace.end.num_windows == len(windows)
        if found:
            ours, theirs = found[-1].catalog, windows[-1].catalog
            assert list(ours.apis) == list(theirs.apis)
            assert list(ours.variables) == list(theirs.variables)
            assert list(ours.contexts) == list(theirs.contexts)


def test_iterating_twice_gives_the_same_and_separate_catalogs(tmp_path: Path) -> None:
    windows = training_run(3)
    write(tmp_path, windows)
    [trace] = open_run(tmp_path).ranks
    first, second = list(trace.windows()), list(trace.windows())
    assert_same_windows(first, second)
    assert first[0].catalog is not second[0].catalog
    assert all(window.catalog is first[0].catalog for window in first)


def test_empty_frames_absent_attributes_and_none_are_three_things(tmp_path: Path) -> None:
    run = RunBuilder()
    weights = run.parameters("a", "b")
    with run.calling("torch.optim.SGD.step"):
        run.frame("begin", weights[:0], data=[])
        run.frame("begin", weights)
        run.frame("end", weights, optimizer="", dtype=["torch.float32", ""])
    write(tmp_path, [run.window()])
    [window] = open_run(tmp_path).ranks[0].windows()
    empty, bare, full = window.frames
    assert (len(empty), set(empty.columns)) == (0, {"data"})
    assert (len(bare), set(bare.columns)) == (2, set())
    assert full.columns["optimizer"].tolist() == [-1, -1]
    assert full.columns["dtype"].tolist() == [window.catalog.strings.find("torch.float32"), -1]


def test_extreme_values_keep_every_bit(tmp_path: Path) -> None:
    run = RunBuilder()
    weights = run.parameters("a", "b")
    hashes = np.array([2**64 - 1, 2**63], np.uint64)
    norms = np.array([np.nan, -0.0])
    with run.calling("torch.optim.SGD.step"):
        run.frame("end", weights, data=hashes, data_norm=norms, requires_grad=[True, False])
    write(tmp_path, [run.window()])
    [window] = open_run(tmp_path).ranks[0].windows()
    columns = window.frames[0].columns
    assert columns["data"].tolist() == hashes.tolist()
    assert columns["data_norm"].tobytes() == norms.tobytes()
    assert columns["requires_grad"].tolist() == [True, False]


def test_signatures_are_decoded_as_they_were_made(tmp_path: Path) -> None:
    run = RunBuilder()
    items = (tensor("0", shape=()), tensor("weight", dtype="torch.bfloat16"))
    run.call("torch.relu", inputs=items, outputs=[])
    write(tmp_path, [run.window()])
    [window] = open_run(tmp_path).ranks[0].windows()
    assert window.catalog.signature(int(window.calls.inputs[0])) == items
    assert window.catalog.signature(int(window.calls.outputs[0])) == ()


def test_names_that_are_not_unicode_are_escaped(tmp_path: Path) -> None:
    run = RunBuilder()
    run.at(annotations=(("k", "\udcff"),))
    run.call("torch.relu", source="caf\udce9.py:1 in train")
    write(tmp_path, [run.window()])
    [window] = open_run(tmp_path).ranks[0].windows()
    assert window.catalog.sources[int(window.calls.source[0])] == "caf\\udce9.py:1 in train"
    assert window.catalog.contexts[0].annotations == (("k", "\\udcff"),)


def test_ranks_and_how_it_ended_are_kept(tmp_path: Path) -> None:
    manifest = Manifest.here(
        torch="2.13.0", script="train.py", world_size=2, options={"seed": [1, None]}
    )
    for rank in (1, 0):
        writer = TraceWriter(tmp_path / "new" / "run", manifest, rank=rank)
        for window in training_run(rank + 1, rank=rank, world_size=2):
            writer.write(window)
        outcome = Outcome(how="exception", detail="ValueError: bad", exit_code=1)
        writer.close(outcome, problems=["fused Adam could not be observed"])
    run = open_run(tmp_path / "new" / "run")
    assert run.manifest == manifest
    assert run.problems == ()
    assert [trace.rank for trace in run.ranks] == [0, 1]
    for trace in run.ranks:
        assert [w.rank for w in trace.windows()] == [trace.rank] * (trace.rank + 1)
        assert trace.end is not None
        assert trace.end.outcome == outcome
        assert trace.end.problems == ("fused Adam could not be observed",)
        assert trace.end.num_calls == 4 * (trace.rank + 1)
        assert trace.end.num_frames == 6 * (trace.rank + 1)
        assert trace.problems == []


def test_the_schema_has_a_column_for_everything_that_happens() -> None:
    for stream, entry in (("apis", Api), ("variables", Variable), ("contexts", Context)):
        assert STREAMS[stream].names == [field.name for field in fields(entry)]
    assert set(STREAMS["calls"].names) == {*CALL_COLUMNS, "window"}
    frame = {field.name for field in fields(Frame)} - {"columns"}
    assert set(STREAMS["frames"].names) == {*frame, "window", *ATTRIBUTES}


def test_a_trace_is_small(tmp_path: Path) -> None:
    # GIVEN 200 calls per step at irregular times
    windows = training_run(100, num_functions=196)
    clock = np.random.default_rng(0)
    now = 0
    for window in windows:
        gaps = clock.integers(2_000, 60_000, 2 * len(window.calls)).cumsum() + now
        window.calls.begin_ns[:] = gaps[::2]
        window.calls.end_ns[:] = gaps[1::2]
        now = int(gaps[-1])
    # WHEN they are written, ten steps at a time
    write(tmp_path, windows, flush_bytes=200_000)
    # THEN a call, with its share of the frames, takes a few bytes (about 14; 130 as JSON lines)
    size = sum(file.stat().st_size for file in (tmp_path / "rank_0").iterdir())
    assert size / (200 * 100) < 20


@pytest.mark.parametrize("path", ["relative", "with space", "ünïcode"])
def test_any_local_path_will_do(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(path), training_run(1))
    assert len(list(open_run(path).ranks[0].windows())) == 1
    assert json.loads((tmp_path / path / "manifest.json").read_text())["world_size"] == 1


def test_a_uri_will_do(tmp_path: Path) -> None:
    uri = (tmp_path / "run").as_uri()
    writer = TraceWriter(uri, Manifest.here())
    writer.write(training_run(1)[0])
    writer.close()
    run = open_run(uri)
    assert run.path == uri
    assert len(list(run.ranks[0].windows())) == 1
