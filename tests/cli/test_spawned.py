"""Scripts that start their ranks by themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_collect import COLLECT, ENVIRONMENT
from traincheck_plugin.trace.reader import open_run

SCRIPT = """
import os
import tempfile
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


def train(rank, size, file):
    dist.init_process_group("gloo", init_method=f"file://{{file}}", rank=rank, world_size=size)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(step, loss.item().hex(), flush=True)
        if step == 2 and {fails}:
            raise ValueError("out of luck")
    # One that is still connecting aborts when its peer is gone.
    dist.barrier()
    dist.destroy_process_group()


def prepare(rank):
    torch.ones(2).sum()


if __name__ == "__main__":
    init = os.path.join(tempfile.mkdtemp(), "init")
    {start}
"""


def run(folder: Path, start: str, *, fails: bool = False, is_recorded: bool = True):
    (folder / "train.py").write_text(SCRIPT.format(start=start, fails=fails))
    command = [*COLLECT, "--output-dir", "trace", "--pyscript", "train.py"]
    return subprocess.run(
        command if is_recorded else [sys.executable, "train.py"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "os.chdir('/'); mp.spawn(train, args=(2, init), nprocs=2)",
        'mp.start_processes(train, (2, init), 2, start_method="fork")',
    ],
    ids=["spawn", "fork"],
)
def test_each_rank_is_recorded_and_not_changed(tmp_path, start):
    plain, recorded = run(tmp_path, start, is_recorded=False), run(tmp_path, start)
    assert plain.returncode == 0, plain.stderr
    assert recorded.stdout == plain.stdout
    assert recorded.returncode == 0
    assert "2 ranks in trace" in recorded.stderr

    trace = open_run(tmp_path / "trace")
    assert not trace.problems
    assert [(rank.rank, rank.end.outcome.how) for rank in trace.ranks] == [
        (0, "finished"),
        (1, "finished"),
    ]
    for rank in trace.ranks:
        steps = [len(window.rows_of_role("step")) for window in rank.windows()]
        assert sum(steps) == 4
    assert sorted(path.name for path in (tmp_path / "trace").iterdir()) == [
        "manifest.json",
        "rank_0",
        "rank_1",
    ]


@pytest.mark.slow
def test_a_rank_that_raises_looks_as_ever(tmp_path):
    start = "mp.spawn(train, args=(2, init), nprocs=2)"
    plain = run(tmp_path, start, fails=True, is_recorded=False)
    recorded = run(tmp_path, start, fails=True)
    assert recorded.returncode == plain.returncode == 1
    assert "ValueError: out of luck" in recorded.stderr
    assert "traincheck_plugin" not in recorded.stderr
    outcomes = [rank.end and rank.end.outcome for rank in open_run(tmp_path / "trace").ranks]
    assert any(outcome and "out of luck" in outcome.detail for outcome in outcomes)


@pytest.mark.slow
def test_what_helps_a_script_that_trains_is_no_rank(tmp_path):
    start = """mp.spawn(prepare, nprocs=2)
    train(0, 1, init)"""
    recorded = run(tmp_path, start)
    assert recorded.returncode == 0, recorded.stderr
    trace = open_run(tmp_path / "trace")
    assert [rank.rank for rank in trace.ranks] == [0]
    assert sum(len(w.rows_of_role("step")) for w in trace.ranks[0].windows()) == 4
    assert not list((tmp_path / "trace").glob("started*"))


@pytest.mark.slow
def test_ranks_that_are_started_again_are_told(tmp_path):
    start = "[mp.spawn(prepare, nprocs=1) for _ in range(2)]"
    recorded = run(tmp_path, start)
    assert recorded.returncode == 0, recorded.stderr
    assert "rank 0 is not recorded: expected a new directory" in recorded.stderr
