"""Local or on Ray: the same results to the byte, of many ranks too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import RunBuilder
from traincheck_plugin.cli.engine_options import chosen_engine
from traincheck_plugin.cli.infer import _parser
from traincheck_plugin.engine import LocalEngine, engine_of
from traincheck_plugin.errors import ConfigError
from traincheck_plugin.trace.manifest import Manifest
from traincheck_plugin.trace.writer import TraceWriter

ROOT = Path(__file__).parents[1]
NUM_RANKS = 16
NUM_STEPS = 20


def write_run(directory, *, drifts=False):
    """Write a run of many ranks; rank 11 skips the updates from step 15 on if it *drifts*."""
    for rank in range(NUM_RANKS):
        run = RunBuilder(rank=rank, world_size=NUM_RANKS)
        parameters = run.parameters("fc.weight", "fc.bias")
        writer = TraceWriter(
            directory, Manifest(world_size=NUM_RANKS, script="train.py"), rank=rank
        )
        for step in range(NUM_STEPS):
            updates = not (drifts and rank == 11 and step >= 15)
            writer.write(run.training_step(parameters, updates=updates, num_functions=2))
        writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    write_run(folder / "healthy")
    write_run(folder / "buggy", drifts=True)
    return folder


def command(name, folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"traincheck_plugin.cli.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done


def results(folder, *options):
    """Return what infer and check write with *options*."""
    name = "-".join(option.strip("-") for option in options) or "default"
    command("infer", folder, "-f", "healthy", "-o", f"{name}.json", *options)
    found = [
        "-f",
        "buggy",
        "-i",
        f"{name}.json",
        "-o",
        name,
        "--exit-zero",
        "--min-severity",
        "info",
    ]
    (folder / name).mkdir()
    done = command("check", folder, *found, *options)
    [directory] = (folder / name).iterdir()
    written = {
        path.relative_to(directory): path.read_bytes() for path in sorted(directory.rglob("*.log"))
    }
    assert written
    _, _, printed = done.stdout.partition("Checking finished")
    return (folder / f"{name}.json").read_bytes(), written, printed


@pytest.mark.slow
def test_every_engine_gives_the_same_bytes(folder):
    pytest.importorskip("ray")
    alone = results(folder)

    assert results(folder, "-j", "2") == alone
    assert results(folder, "--engine", "ray", "-j", "2") == alone

    invariants = [json.loads(line) for line in alone[0].splitlines()]
    assert any(one["relation"] == "RankConsistencyRelation" for one in invariants)
    logged = b"".join(alone[1].values()).decode()
    assert "rank 11 differs from ranks 0-10, 12-15" in logged


def square(number):
    return number * number


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_order(processes):
    assert list(LocalEngine(processes).map(square, range(7))) == [n * n for n in range(7)]


def test_one_process_needs_no_engine():
    assert chosen_engine(_parser().parse_args(["-f", "trace"])) is None
    assert chosen_engine(_parser().parse_args(["-f", "trace", "-j", "2"])) is not None


def test_an_address_without_ray_is_refused():
    with pytest.raises(ConfigError, match="expected --engine ray with --ray-address"):
        engine_of("local", processes=None, ray_address="auto")


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(ConfigError, match=r"pip install 'traincheck-plugin\[ray\]'"):
        engine_of("ray", processes=None, ray_address=None)
