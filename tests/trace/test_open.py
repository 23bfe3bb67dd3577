"""What `open_run` says of everything that is no trace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.builders import training_run
from traincheck_plugin.errors import TraceError
from traincheck_plugin.trace import Manifest, TraceWriter, open_run
from traincheck_plugin.trace.schema import STREAMS, VERSION_KEY
from traincheck_plugin.version import __version__


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = TraceWriter(tmp_path / "run", Manifest.here())
    for window in training_run(2):
        writer.write(window)
    writer.close()
    return tmp_path / "run"


def message(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        open_run(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_such_directory(tmp_path: Path) -> None:
    assert message(tmp_path / "no") == (
        f"{tmp_path}/no is not a trace: expected the directory of a run, got nothing there; "
        "check the path, or collect a trace with traincheck-collect --output-dir"
    )


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "expected the directory of a run, got a file" in message(tmp_path / "file")


def test_an_empty_directory(tmp_path: Path) -> None:
    assert message(tmp_path) == (
        f"{tmp_path} holds no trace: expected manifest.json and a directory rank_0, found "
        "nothing; check the path, or collect a trace with traincheck-collect --output-dir"
    )


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"file{number}").touch()
    assert "found file0, file1, file2, file3, file4, file5 and 3 more; " in message(tmp_path)


def test_a_manifest_alone(run: Path) -> None:
    shutil.rmtree(run / "rank_0")
    assert "a directory rank_0, found manifest.json; " in message(run)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_missing_file(stream: str, run: Path) -> None:
    (run / "rank_0" / f"{stream}.arrow").unlink()
    assert message(run) == (
        f"{run}/rank_0 is not a whole trace: expected apis.arrow, variables.arrow, "
        f"contexts.arrow, frames.arrow, calls.arrow, but {stream}.arrow is missing; copy the "
        "whole directory, or collect the trace again"
    )


def test_an_empty_rank(run: Path) -> None:
    for file in (run / "rank_0").iterdir():
        file.unlink()
    assert "frames.arrow, calls.arrow are missing; copy" in message(run)


@pytest.mark.parametrize("garbage", [b"hello", b"ARROW1\0\0" + bytes(100), b"\xff" * 64])
def test_garbage(garbage: bytes, run: Path) -> None:
    (run / "rank_0" / "frames.arrow").write_bytes(garbage)
    assert message(run) == (
        f"{run}/rank_0/frames.arrow is not part of a trace: expected the Arrow stream of "
        "'frames' that a recorder writes, got something else; restore the file or collect the "
        "trace again"
    )


def write_stream(path: Path, schema: pa.Schema) -> None:
    with pa.ipc.new_stream(path, schema):
        pass


def test_a_foreign_stream(run: Path) -> None:
    write_stream(run / "rank_0" / "calls.arrow", pa.schema([("x", pa.int8()), ("y", pa.int8())]))
    assert "got an Arrow stream of something else, with columns x, y; " in message(run)


def test_columns_that_do_not_fit(run: Path) -> None:
    schema = STREAMS["calls"]
    write_stream(run / "rank_0" / "calls.arrow", schema.remove(3))
    assert "got one without the column 'api'; " in message(run)
    write_stream(run / "rank_0" / "calls.arrow", schema.set(3, pa.field("api", pa.string())))
    assert "got one whose 'api' is string; " in message(run)


def test_a_newer_manifest(run: Path) -> None:
    data = json.loads((run / "manifest.json").read_text())
    data |= {"schema_version": 9, "traincheck_plugin": "7.0", "later": True}
    (run / "manifest.json").write_text(json.dumps(data))
    assert message(run) == (
        f"{run}/manifest.json was written by traincheck-plugin 7.0 with trace schema 9, and "
        f"traincheck-plugin {__version__} reads schemas up to 1: "
        "upgrade with pip install -U traincheck-plugin"
    )


def test_a_newer_stream(run: Path) -> None:
    schema = STREAMS["apis"]
    newer = schema.with_metadata({**schema.metadata, VERSION_KEY: b"2"})
    write_stream(run / "rank_0" / "apis.arrow", newer)
    assert "apis.arrow was written with trace schema 2, and " in message(run)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "got text that ends or breaks at Expecting value"),
        ("[1]", "but got list"),
        ("{}", "but it has no 'schema_version'"),
        ('{"schema_version": "1"}', "but its 'schema_version' is '1'"),
        ('{"schema_version": true}', "but its 'schema_version' is True"),
        ('{"schema_version": 1, "world_size": null}', "but its 'world_size' is None"),
    ],
)
def test_a_broken_manifest(text: str, found: str, run: Path) -> None:
    (run / "manifest.json").write_text(text)
    told = message(run)
    assert told.startswith(f"{run}/manifest.json is not a run manifest: expected a JSON object")
    assert found in told


def test_an_unknown_file_system() -> None:
    with pytest.raises(TraceError, match="expected a local path or a URI that"):
        open_run("nosuch://bucket/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(run: Path) -> None:
    (run / "rank_0" / "apis.arrow").chmod(0)
    assert "cannot be read: " in message(run)


def test_later_columns_and_keys_are_skipped(run: Path) -> None:
    # GIVEN a trace of a later version of the same schema
    directory = run / "rank_0"
    for stream in ("contexts", "frames"):
        with pa.ipc.open_stream(directory / f"{stream}.arrow") as reader:
            [batch] = list(reader)
        later = batch.append_column("later", pa.nulls(len(batch), pa.int8()))
        with pa.ipc.new_stream(directory / f"{stream}.arrow", later.schema) as writer:
            writer.write_batch(later)
    data = json.loads((directory / "end.json").read_text())
    data["later"] = data["outcome"]["later"] = 1
    (directory / "end.json").write_text(json.dumps(data))
    # THEN it is read
    [trace] = open_run(run).ranks
    assert len(list(trace.windows())) == 2
    assert trace.problems == []


def test_a_trace_older_than_an_attribute_is_read(run: Path) -> None:
    path = run / "rank_0" / "frames.arrow"
    with pa.ipc.open_stream(path) as reader:
        [batch] = list(reader)
    names = [name for name in batch.schema.names if name != "grad_norm"]
    with pa.ipc.new_stream(path, batch.select(names).schema) as writer:
        writer.write_batch(batch.select(names))
    windows = list(open_run(run).ranks[0].windows())
    assert len(windows) == 2
    assert not any("grad_norm" in frame.columns for w in windows for frame in w.frames)


def test_a_trace_older_than_a_property_of_contexts_is_read(run: Path) -> None:
    path = run / "rank_0" / "contexts.arrow"
    with pa.ipc.open_stream(path) as reader:
        [batch] = list(reader)
    names = [name for name in batch.schema.names if not name.endswith("_parallel")]
    with pa.ipc.new_stream(path, batch.select(names).schema) as writer:
        writer.write_batch(batch.select(names))
    [*_, window] = open_run(run).ranks[0].windows()
    assert {context.data_parallel for context in window.catalog.contexts} == {-1}


def test_the_directory_of_one_rank(run: Path) -> None:
    opened = open_run(run / "rank_0")
    assert opened.manifest.started
    assert len(list(opened.ranks[0].windows())) == 2
    assert opened.problems == ()


def test_a_rank_copied_alone_has_no_manifest(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "rank_0", tmp_path / "rank_4")
    opened = open_run(tmp_path / "rank_4")
    assert opened.problems == (
        f"{tmp_path} has no manifest.json: versions, command and host are unknown",
    )
    assert [window.rank for window in opened.ranks[0].windows()] == [4, 4]


def test_missing_ranks(tmp_path: Path) -> None:
    for rank in (10, 2):
        TraceWriter(tmp_path, Manifest.here(world_size=12), rank=rank).close()
    opened = open_run(tmp_path)
    assert [trace.rank for trace in opened.ranks] == [2, 10]
    assert opened.problems == (
        f"{tmp_path} has no trace of rank 0, 1, 3, 4, 5, 6 and 4 more: the run had 12 processes",
    )


def test_reading_imports_no_torch() -> None:
    code = "import sys, traincheck_plugin.trace; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
