"""Two processes: each is watched, one of them talks, and all of them stop together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from traincheck_plugin.checker.check import check
from traincheck_plugin.invariants.sources import load_sources
from traincheck_plugin.trace.reader import open_run

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


def train(folder, strategy, case):
    """Train on two processes; return what was found on each, and what was said on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.lightning_adapter.worker", folder, strategy, case],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{case}_*.json"))]
    return found, done.stderr


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_a_clean_run_is_silent_and_both_write_traces(tmp_path, strategy):
    found, said = train(tmp_path, strategy, "clean")

    run = open_run(tmp_path / "trace")
    assert [rank.rank for rank in run.ranks] == [0, 1]
    assert [rank.end.outcome.how for rank in run.ranks] == ["finished", "finished"]
    result = check(run, load_sources(["default"]))
    assert (result.diagnoses, result.num_steps) == ((), 10)
    assert said.count("no violation in 10 steps") == 1
    if strategy == "ddp":
        # Those that are spawned keep their callback to themselves.
        assert found == [{"num_steps": 10, "told": [], "problems": []}] * 2


def test_a_bug_is_told_once(tmp_path):
    found, said = train(tmp_path, "ddp", "warn")

    assert [len(one["told"]) for one in found] == [1, 1]
    assert [one["num_steps"] for one in found] == [10, 10]
    assert said.count("zero_grad was not") == 1


def test_both_stop_at_the_same_step(tmp_path):
    found, _ = train(tmp_path, "ddp", "stop")

    first, second = found
    assert first["num_steps"] == second["num_steps"] < 5
    assert first["told"]
    assert second["told"]
