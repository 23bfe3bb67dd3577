"""Two processes: each is watched as its rank, and both end after the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from traincheck_plugin.trace.reader import open_run

ROOT = Path(__file__).parents[2]


def launch(folder, rules, on_violation):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += ["-m", "tests.transformers_adapter.worker", str(folder), str(rules), on_violation]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, [
        json.loads((folder / f"found_{rank}.json").read_text()) for rank in range(2)
    ]


@pytest.mark.slow
def test_healthy_processes_are_silent_and_write_their_ranks(tmp_path, rules):
    printed, found = launch(tmp_path, rules, "warn")

    assert [one["violations"] for one in found] == [[], []]
    assert [one["problems"] for one in found] == [[], []]
    assert [one["logged"] for one in found] == [True, False]
    assert "CRITICAL" not in printed
    run = open_run(str(tmp_path / "trace"))
    assert [trace.rank for trace in run.ranks] == [0, 1]
    assert run.manifest.world_size == 2
    assert all(trace.end.outcome.how == "finished" for trace in run.ranks)


@pytest.mark.slow
def test_what_one_process_finds_ends_both_after_the_same_step(tmp_path, rules):
    printed, found = launch(tmp_path, rules, "stop")

    assert found[0]["violations"] == []
    assert found[1]["violations"]
    assert found[0]["steps"] == found[1]["steps"] < 9
    assert printed.count("AdamW.step updated 0 of 41 parameters") == 1
