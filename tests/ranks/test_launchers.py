"""`traincheck-collect -- LAUNCHER`: every rank is recorded, whatever starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.ranks.launching import COLLECT, ENVIRONMENT, run, torchrun
from traincheck_plugin.trace.reader import open_run

TRAIN = """
import os, sys
import torch

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).mean().backward()
    optimizer.step()
print(sys.argv[1:], __name__, __spec__ is None, os.environ.get("PYTHONPATH"), flush=True)
"""

MPIRUN = """
import os, subprocess, sys

ranks = [
    subprocess.Popen(
        sys.argv[1:],
        env={**os.environ, "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2"},
    )
    for rank in range(2)
]
sys.exit(max(rank.wait() for rank in ranks))
"""
"""What `mpirun` does, as far as it matters: no RANK, and a rank in variables of its own."""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "mpirun").write_text(MPIRUN)
    return tmp_path


def collect(folder, *command, environment=None):
    command = [*COLLECT, "--output-dir", "trace", "--", *command]
    return run(command, folder, environment)


def ranks_of(folder):
    run = open_run(folder / "trace")
    return [trace.rank for trace in run.ranks], run.manifest.world_size


def said(done):
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "told"), [(["train.py"], "True"), (["-m", "train"], "False")], ids=["file", "module"]
)
def test_each_rank_of_torchrun_is_recorded(folder, script, told):
    done = collect(folder, *torchrun(*script, "--epochs", "2"))

    assert done.returncode == 0, done.stderr
    line = f"['--epochs', '2'] __main__ {told} {ENVIRONMENT['PYTHONPATH']}"
    assert done.stdout.splitlines() == [line, line]
    assert said(done) == "traincheck-collect: 2 ranks in trace"
    assert ranks_of(folder) == ([0, 1], 2)
    run = open_run(folder / "trace")
    assert run.problems == ()
    assert {trace.end.outcome.how for trace in run.ranks} == {"finished"}
    assert run.manifest.script in ("train.py", "train")


@pytest.mark.slow
def test_each_rank_of_accelerate_launch_is_recorded(folder):
    pytest.importorskip("accelerate")
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]

    done = collect(folder, *launcher, "train.py")

    assert done.returncode == 0, done.stderr
    assert ranks_of(folder) == ([0, 1], 2)


def test_each_rank_of_a_launcher_like_mpirun_is_recorded(folder):
    done = collect(folder, sys.executable, "mpirun", sys.executable, "-X", "utf8", "train.py")

    assert done.returncode == 0, done.stderr
    assert ranks_of(folder) == ([0, 1], 2)


def test_a_script_without_a_rank_is_recorded_if_it_is_named(folder):
    done = collect(folder, "env", "X=1", sys.executable, "train.py")

    assert done.returncode == 0, done.stderr
    assert said(done) == "traincheck-collect: 1 rank in trace"


def test_the_rank_of_the_machine_does_not_make_the_launcher_a_rank(folder):
    # As on a cluster whose machines have ranks of their own, which launchers inherit.
    (folder / "launcher").write_text("import torch, runpy, sys; print('launching')")

    done = collect(folder, sys.executable, "launcher", environment={"RANK": "0", "WORLD_SIZE": "2"})

    assert done.returncode == 0
    assert done.stdout == "launching\n"
    assert said(done).startswith("traincheck-collect: nothing was recorded: expected a process ")
    assert not (folder / "trace").exists()


def test_what_a_rank_starts_is_not_recorded(folder):
    (folder / "train.py").write_text(
        "import subprocess, sys\n"
        "if len(sys.argv) == 1:\n"
        "    subprocess.run([sys.executable, 'train.py', 'again'], check=True)\n" + TRAIN
    )

    done = collect(folder, sys.executable, "train.py")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert ranks_of(folder) == ([0], 1)


def test_the_environment_may_have_a_sitecustomize_of_its_own(folder):
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text("import builtins; builtins.NUMBER = 7")
    (folder / "train.py").write_text(TRAIN + "print(NUMBER)")
    (folder / "mpirun").write_text(MPIRUN + "\nprint(NUMBER)\n")
    path = f"{folder / 'site'}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"

    done = collect(
        folder,
        *(sys.executable, "mpirun", sys.executable, "train.py"),
        environment={"PYTHONPATH": path},
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7\n") == 2
    assert "sitecustomize" not in done.stderr


def test_the_exit_code_is_that_of_the_launcher(folder):
    (folder / "train.py").write_text("import torch, sys\n" + TRAIN + "sys.exit(7)")

    done = collect(folder, sys.executable, "train.py")

    assert done.returncode == 7
    assert open_run(folder / "trace").ranks[0].end.outcome.how == "exit"


def test_a_rank_that_raises_before_training_ends_as_it_would(folder):
    (folder / "train.py").write_text("import torch\nraise ValueError('no')")

    done = collect(folder, sys.executable, "train.py")

    assert done.returncode == 1
    assert said(done) == "traincheck-collect: 1 rank in trace; rank 0 ended by ValueError: no"


def test_a_rank_that_cannot_be_recorded_trains_all_the_same(folder):
    (folder / "trace/rank_1").mkdir(parents=True)
    (folder / "trace/rank_1/other").touch()

    done = collect(folder, sys.executable, "mpirun", sys.executable, "train.py")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert "rank 1 is not recorded: expected a new directory" in done.stderr
    run = open_run(folder / "trace")
    assert [trace.rank for trace in run.ranks] == [0]
    assert len(run.problems) == 1
    assert "is not a whole trace" in run.problems[0]


def test_the_trace_of_an_earlier_run_is_not_added_to(folder):
    collect(folder, sys.executable, "train.py")

    done = collect(folder, sys.executable, "train.py")

    assert done.returncode == 2
    assert done.stdout == ""
    assert "expected a new directory, but trace holds a trace" in done.stderr


def test_a_command_that_does_not_exist_is_said_in_one_line(folder):
    done = collect(folder, "no-launcher", "train.py")

    assert done.returncode == 2
    assert done.stderr == (
        "traincheck-collect: expected a command that launches scripts, but no-launcher gives: "
        "No such file or directory; check what follows --\n"
    )


def test_the_kill_switch_leaves_the_launcher_alone(folder):
    done = collect(folder, sys.executable, "train.py", environment={"TRAINCHECK_DISABLE": "1"})

    assert done.returncode == 0
    assert said(done) == "traincheck-collect: TRAINCHECK_DISABLE is set: nothing was recorded"
    assert not (folder / "trace").exists()


def test_termination_is_passed_on(folder):
    (folder / "train.py").write_text(TRAIN + "import time; time.sleep(60)")
    process = subprocess.Popen(
        [*COLLECT, "--output-dir", "trace", "--", sys.executable, "train.py"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert process.returncode == 128 + signal.SIGTERM
    assert open_run(folder / "trace").ranks[0].end.outcome.detail == "SIGTERM"
