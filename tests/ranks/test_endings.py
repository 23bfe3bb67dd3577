"""A rank that stops, raises, hangs or is killed keeps nobody waiting, and the others say so."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.ranks.launching import ENVIRONMENT, ROOT
from traincheck_plugin.checker.check import check
from traincheck_plugin.relations.loading import load_checkable
from traincheck_plugin.trace.reader import open_run

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def launch(folder, how):
    """Run both ranks without a launcher, which would end the other one; return rank 0's findings.

    Rank 0 keeps the store and outlives rank 1.
    """
    environment = ENVIRONMENT | {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "PYTHONPATH": str(ROOT),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/ranks/endings.py"), str(folder), how],
            env=environment | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    _, errors = ranks[0].communicate(timeout=120)
    assert ranks[0].returncode == 0, errors
    if how == "hangs":
        ranks[1].kill()
    ranks[1].communicate(timeout=120)
    found = json.loads((folder / "found_0.json").read_text())
    assert found["steps"] == 24
    assert found["violations"] == []
    return found, ranks[1].returncode


def test_a_rank_with_fewer_steps_is_nothing_to_report(tmp_path):
    found, _ = launch(tmp_path, "leaves")

    assert found["problems"] == []


def test_a_rank_that_raises_ends_the_comparison(tmp_path):
    found, _ = launch(tmp_path, "raises")

    assert found["problems"] == [
        "the comparison of ranks ended before step 10: rank 1: exception ValueError: no"
    ]


def test_a_rank_that_hangs_ends_the_comparison(tmp_path):
    found, _ = launch(tmp_path, "hangs")

    assert found["seconds"] < 30
    [problem] = found["problems"]
    assert problem.startswith("the comparison of ranks ended early: another rank did not answer")


def test_a_rank_that_is_killed_leaves_a_trace_and_ends_the_comparison(tmp_path):
    found, exit_code = launch(tmp_path, "killed")

    assert exit_code == -signal.SIGKILL
    assert found["seconds"] < 30
    [problem] = found["problems"]
    assert problem.startswith("the comparison of ranks ended before step 9: a rank was lost (")

    run = open_run(tmp_path / "trace")
    result = check(run, load_checkable(["default"])[0])
    assert [trace.rank for trace in run.ranks] == [0, 1]
    assert result.num_steps == 24
    assert result.diagnoses == ()
    ended = "rank_1 has no end.json: recovered 9 windows up to step 8; the process was killed"
    assert any(ended in problem for problem in result.problems), result.problems
    assert not os.path.exists(tmp_path / "trace/rank_1/end.json")
