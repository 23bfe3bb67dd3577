"""Real scripts, recorded by the command in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.model import APIParam, Invariant
from traincheck_plugin.trace.reader import Run, open_run

ROOT = Path(__file__).parents[2]
COLLECT = [sys.executable, "-m", "traincheck_plugin.cli.collect"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

HEADER = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
"""

TRAIN = (
    HEADER
    + """
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)


def train(num_steps):
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 4)).square().mean()
        loss.backward()
        optimizer.step()
        print(step, loss.item().hex(), flush=True)

"""
)


def run(folder: Path, script: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    """Run *script*, named train.py, in *folder*: under the command, or plainly."""
    (folder / "train.py").write_text(textwrap.dedent(script))
    command = options.pop("command", [*COLLECT, "--pyscript", "train.py", *arguments])
    return subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT | options.pop("env", {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def run_plainly(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    return run(folder, script, command=[sys.executable, "train.py"])


def the_trace(folder: Path) -> Run:
    [directory] = folder.glob("traincheck_train_trace_*")
    return open_run(directory)


def names_of_calls(trace: Run) -> Counter[str]:
    names: Counter[str] = Counter()
    for window in trace.ranks[0].windows():
        names.update(window.catalog.apis[int(code)].name for code in window.calls.api)
    assert trace.ranks[0].problems == []
    return names


def own_line(finished: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that the command says, which is the last."""
    *others, line = finished.stderr.splitlines()
    assert not [other for other in others if "traincheck" in other]
    assert line.startswith("traincheck-collect: ")
    return line.removeprefix("traincheck-collect: ")


def test_a_healthy_run_is_recorded_and_not_changed(tmp_path):
    script = TRAIN + "print(sys.argv[1:]); train(5); print(torch.randn(3).tolist())\n"
    expected = run_plainly(tmp_path, script)
    got = run(tmp_path, script)

    assert got.stdout == expected.stdout
    assert got.returncode == expected.returncode == 0
    assert re.fullmatch(
        r"\d+ windows, \d+ calls, 0\.\d MB in traincheck_train_trace_\d{8}_\d{6}",
        own_line(got),
    )

    trace = the_trace(tmp_path)
    names = names_of_calls(trace)
    assert names["torch.optim.Adam.step"] == 5
    assert names["torch.optim.Adam.zero_grad"] == 5
    assert names["torch.nn.functional.relu"] == 5
    assert trace.manifest.script == "train.py"
    assert trace.manifest.command == ("traincheck-collect", "--pyscript", "train.py")
    assert trace.manifest.torch
    assert trace.ranks[0].end.outcome.how == "finished"
    assert trace.ranks[0].end.outcome.exit_code == 0


def test_an_exception_in_training_looks_as_ever(tmp_path):
    script = (
        TRAIN
        + """
train(2)

def lose():
    return nn.functional.mse_loss(model(torch.randn(3, 5)), torch.zeros(3, 1))

try:
    lose()
except RuntimeError as error:
    raise ValueError("no loss") from error
"""
    )
    expected = run_plainly(tmp_path, script)
    got = run(tmp_path, script)

    assert got.stdout == expected.stdout
    assert got.returncode == expected.returncode == 1
    assert got.stderr.removesuffix(got.stderr.splitlines(keepends=True)[-1]) == expected.stderr
    assert "windows" in own_line(got)
    end = the_trace(tmp_path).ranks[0].end
    assert (end.outcome.how, end.outcome.detail) == ("exception", "ValueError: no loss")
    assert end.outcome.exit_code == 1


@pytest.mark.parametrize(
    ("ending", "code", "how", "detail"),
    [
        ("sys.exit(3)", 3, "exit", "sys.exit(3)"),
        ("sys.exit('enough')", 1, "exit", "enough"),
    ],
)
def test_exit_codes_are_passed_on(tmp_path, ending, code, how, detail):
    got = run(tmp_path, f"{TRAIN}train(2); {ending}\n")
    assert got.returncode == code
    assert "windows" in own_line(got)
    assert ("enough\n" in got.stderr) == (detail == "enough")
    outcome = the_trace(tmp_path).ranks[0].end.outcome
    assert (outcome.how, outcome.detail, outcome.exit_code) == (how, detail, code)


def signalled(folder: Path, number: int, *, plainly: bool = False) -> subprocess.Popen[str]:
    """Start an endless training, and send it the signal once it has trained."""
    (folder / "train.py").write_text(TRAIN + "train(10**9)\n")
    process = subprocess.Popen(
        [sys.executable, "train.py"] if plainly else [*COLLECT, "--pyscript", "train.py"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("50 "):
            break
    if number == signal.SIGKILL:
        wait_for_calls(folder)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process


def wait_for_calls(folder: Path) -> None:
    """Wait until the trace that is being written holds some."""
    for _ in range(300):
        if any(file.stat().st_size > 10_000 for file in folder.glob("*/rank_0/calls.arrow")):
            return
        time.sleep(0.1)
    raise AssertionError("nothing was written in half a minute")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_kills_as_ever_and_the_trace_is_whole(tmp_path, number):
    assert signalled(tmp_path, number, plainly=True).returncode == -number
    assert signalled(tmp_path, number).returncode == -number

    trace = the_trace(tmp_path)
    assert names_of_calls(trace)["torch.optim.Adam.step"] >= 50
    outcome = trace.ranks[0].end.outcome
    assert outcome.how == "interrupted"
    assert outcome.detail == {2: "KeyboardInterrupt", 15: "SIGTERM"}[number]
    assert outcome.exit_code == 128 + number


def test_a_killed_run_can_be_read(tmp_path):
    assert signalled(tmp_path, signal.SIGKILL).returncode == -signal.SIGKILL
    trace = the_trace(tmp_path)
    windows = list(trace.ranks[0].windows())
    assert len(windows) > 50
    assert windows[-1].catalog.contexts[int(windows[-1].calls.context[-1])].step > 50
    assert trace.ranks[0].end is None


def test_a_handler_of_the_script_gets_the_signal(tmp_path):
    script = (
        TRAIN
        + """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
train(2)
os.kill(os.getpid(), signal.SIGTERM)
"""
    )
    assert run(tmp_path, script).returncode == 9
    assert the_trace(tmp_path).ranks[0].end.outcome.how == "exit"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import there_is_no_such_module", "ModuleNotFoundError: No module named"),
        ("import torch\nfrom torch import there_is_no_such_name", "ImportError: cannot import"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import torch\nopen('no_such_file')", "FileNotFoundError: [Errno 2] No such file"),
    ],
)
def test_a_script_that_fails_before_training(tmp_path, script, reason):
    expected = run_plainly(tmp_path, script)
    got = run(tmp_path, script)
    assert got.returncode == 2
    assert "".join(got.stderr.splitlines(keepends=True)[:-1]) == expected.stderr
    assert own_line(got).startswith(f"the script failed before training started: {reason}")
    assert own_line(got).endswith("; no training was recorded")


@pytest.mark.parametrize(
    ("script", "warning"),
    [
        ("print('no torch')", "the script never imported torch; nothing was recorded"),
        ("import torch; torch.ones(2).sum()", "no optimizer step was seen, so there is nothing"),
    ],
)
def test_a_script_that_trains_nothing(tmp_path, script, warning):
    got = run(tmp_path, script)
    assert got.returncode == 0
    assert own_line(got).startswith(f"warning: {warning}")
    assert ("never imported" in warning) == (not list(tmp_path.glob("traincheck_train_trace_*")))


def test_what_cannot_be_run_is_said_in_one_line(tmp_path):
    def said(*arguments: str, **options) -> str:
        finished = run(tmp_path, "print('ran')", command=[*COLLECT, *arguments], **options)
        assert (finished.returncode, finished.stdout) == (2, "")
        return own_line(finished)

    assert said("--pyscript", "no.py") == (
        "expected a Python script, but no.py does not exist; check the path"
    )
    assert said("--pyscript", ".") == (
        "expected a Python script, but . is a directory; name the file to run"
    )
    assert said() == (
        "expected a script to run, got none; name it with --pyscript FILE, before any --, or "
        "a launcher after --"
    )
    assert said("--pyscript", "train.py", "--output-dir", "train.py") == (
        "expected a directory for the trace, but train.py gives: Not a directory; "
        "choose another --output-dir"
    )
    (tmp_path / "taken" / "rank_0").mkdir(parents=True)
    (tmp_path / "taken" / "rank_0" / "end.json").write_text("{}")
    assert said("--pyscript", "train.py", "--output-dir", "taken") == (
        "expected a new directory, but taken holds a trace; "
        "choose another --output-dir, or delete it first"
    )
    assert "found nothing; make one with traincheck-infer" in said(
        "--pyscript", "train.py", "--invariants", "no.json"
    )
    assert "expected --output-dir, as this is one of 2 processes" in said(
        "--pyscript", "train.py", env={"RANK": "0", "WORLD_SIZE": "2"}
    )


def test_a_full_disk_stops_the_trace_and_not_the_training(tmp_path):
    script = (
        """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
"""
        + TRAIN
        + "train(40)\n"
    )
    expected = run_plainly(tmp_path, script)
    got = run(tmp_path, script)
    assert got.stdout == expected.stdout
    assert got.returncode == 0
    assert "is incomplete after" in own_line(got)
    assert "File too large" in own_line(got)


def test_a_recorder_that_fails_does_not_touch_the_training(tmp_path):
    script = (
        """
import builtins
original = builtins.__import__
def refuse(name, *rest):
    if name.startswith("pyarrow"):
        raise RuntimeError("no pyarrow today")
    return original(name, *rest)
builtins.__import__ = refuse
"""
        + TRAIN
        + "train(3); sys.exit(4)\n"
    )
    expected = run_plainly(tmp_path, script)
    got = run(tmp_path, script)
    assert got.stdout == expected.stdout
    assert got.returncode == 4
    assert own_line(got) == (
        "nothing was recorded: recording could not start: RuntimeError('no pyarrow today')"
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_write_no_trace(tmp_path, method):
    script = HEADER + textwrap.dedent(
        f"""
        from torch.utils.data import DataLoader, Dataset

        class Numbers(Dataset):
            def __len__(self):
                return 12
            def __getitem__(self, index):
                return torch.relu(torch.full((2,), float(index)))

        if __name__ == "__main__":
            model = nn.Linear(2, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            loader = DataLoader(
                Numbers(), batch_size=4, num_workers=2, multiprocessing_context="{method}"
            )
            for batch in loader:
                optimizer.zero_grad()
                loss = model(batch).sum()
                loss.backward()
                optimizer.step()
                print(loss.item().hex())
        """
    )
    expected = run_plainly(tmp_path, script)
    got = run(tmp_path, script)
    assert got.stdout == expected.stdout != ""
    assert got.returncode == 0
    own_line(got)
    trace = the_trace(tmp_path)
    assert len(trace.ranks) == 1
    names = names_of_calls(trace)
    assert names["torch.optim.SGD.step"] == 3
    assert names["torch.relu"] == 0


def test_what_a_forked_child_does_is_its_own(tmp_path):
    script = (
        TRAIN
        + """
import os
train(1)
child = os.fork()
if child == 0:
    train(2)
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
train(3)
"""
    )
    got = run(tmp_path, script)
    assert got.returncode == 0
    assert "\n5\n" in got.stdout
    own_line(got)
    trace = the_trace(tmp_path)
    assert names_of_calls(trace)["torch.optim.Adam.step"] == 4
    assert trace.ranks[0].end.outcome.how == "finished"


def test_scripts_written_for_upstream_run(tmp_path):
    script = (
        "from traincheck import annotate_stage\n" + TRAIN + "annotate_stage('testing')\ntrain(2)\n"
    )
    assert run(tmp_path, script).returncode == 0
    stages = {
        window.catalog.contexts[int(code)].stage
        for window in the_trace(tmp_path).ranks[0].windows()
        for code in window.calls.context
    }
    assert "testing" in stages


def test_the_environment_that_the_script_sets_before_torch_counts(tmp_path):
    script = 'import os\nos.environ["OMP_NUM_THREADS"] = "2"\nimport torch\n'
    got = run(tmp_path, script + "print(torch.get_num_threads())\n")
    assert got.stdout == "2\n"


def test_the_trace_goes_where_it_was_to_go_when_the_script_leaves(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    script = "import os\nos.chdir('elsewhere')\n" + TRAIN + "train(1)\n"
    got = run(tmp_path, script, "--output-dir", "out")
    assert own_line(got).endswith(" in out")
    assert names_of_calls(open_run(tmp_path / "out"))["torch.optim.Adam.step"] == 1


def test_a_rank_of_a_launcher_writes_its_own_directory(tmp_path):
    got = run(
        tmp_path,
        TRAIN + "train(1)\n",
        "--output-dir",
        "out",
        env={"RANK": "1", "WORLD_SIZE": "2"},
    )
    assert got.returncode == 0
    trace = open_run(tmp_path / "out")
    assert [rank.rank for rank in trace.ranks] == [1]
    assert trace.manifest.world_size == 2


def test_sampling_and_options_reach_the_recorder_and_the_manifest(tmp_path):
    arguments = ["--sampling-interval", "3", "--warm-up-steps", "2", "--models-to-track", "model"]
    run(tmp_path, TRAIN + "train(7)\n", *arguments)
    trace = the_trace(tmp_path)
    observed = {
        window.catalog.contexts[int(code)].step
        for window in trace.ranks[0].windows()
        for code, api in zip(window.calls.context, window.calls.api, strict=True)
        if window.observed and window.catalog.apis[int(api)].role == "step"
    }
    assert observed == {0, 1, 3, 6}
    assert trace.manifest.options["sampling_interval"] == 3
    assert trace.manifest.options["warm_up_steps"] == 2
    assert trace.manifest.options["models_to_track"] == ["model"]


def test_with_invariants_only_what_they_need_is_recorded(tmp_path):
    invariant = Invariant(
        relation="FunctionCoverRelation",
        params=(
            APIParam(api_full_name="torch.optim.Optimizer.zero_grad"),
            APIParam(api_full_name="torch.optim.Optimizer.step"),
        ),
    )
    dump_invariants([invariant], tmp_path / "invariants.json")
    got = run(tmp_path, TRAIN + "train(2)\n", "--invariants", "invariants.json")
    assert got.returncode == 0, got.stderr
    trace = the_trace(tmp_path)
    names = names_of_calls(trace)
    assert names["torch.optim.Adam.step"] == 2
    assert names["torch.nn.functional.relu"] == 0
    assert trace.manifest.options["invariants"] == ["invariants.json"]


def test_the_kill_switch_only_runs_the_script(tmp_path):
    got = run(tmp_path, "print('ran'); raise SystemExit(3)", env={"TRAINCHECK_DISABLE": "1"})
    assert (got.stdout, got.returncode) == ("ran\n", 3)
    assert own_line(got) == "TRAINCHECK_DISABLE is set: nothing was recorded"
    assert not list(tmp_path.glob("traincheck_*"))
