"""Two processes that train one model on the CPU, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from traincheck_plugin.checker.check import check
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.trace.reader import open_run

WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parent.parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(from_plain, tmp_path_factory):
    """What both processes tell, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, WORKER, folder, from_plain],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)], folder


@pytest.mark.parametrize("name", ["clean", "accumulating"])
def test_a_healthy_run_is_silent(found, name):
    for of_rank in found[0]:
        assert of_rank[name]["causes"] == []
        assert of_rank[name]["problems"] == []
    first, second = (of_rank[name]["said"] for of_rank in found[0])
    assert "no violation in" in first
    assert second == ""


def test_the_numbers_are_the_same(found):
    for of_rank in found[0]:
        for fact in ("losses", "weights"):
            assert of_rank["clean"][fact] == of_rank["unwatched"][fact]


def test_both_write_traces(found, from_plain):
    run = open_run(found[1] / "trace")
    assert [rank.rank for rank in run.ranks] == [0, 1]
    result = check(run, load_invariants(from_plain))
    assert [d.message for d in result.diagnoses if d.severity != "info"] == []
    # Ten batches are five for each process, three times.
    assert result.num_steps == 15


def test_only_one_tells_what_both_see(found):
    warned = [of_rank["warn"] for of_rank in found[0]]
    for one in warned:
        (cause,) = one["causes"]
        assert "zero_grad was not called" in cause
        assert one["num_batches"] == 15
    assert [one["ranks"] for one in warned] == [[0], [1]]
    assert sum(one["said"].count("zero_grad was not called") for one in warned) == 1


def test_both_stop_at_the_same_step(found):
    first, second = (of_rank["stop"] for of_rank in found[0])
    assert first["num_batches"] == second["num_batches"] < 15
    assert first["causes"]
    assert second["causes"]
