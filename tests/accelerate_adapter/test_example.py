"""The example runs: its bugs are caught, and without them it is silent, as the page tells."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "examples" / "accelerate" / "digits.py"
PAGE = ROOT / "docs" / "accelerate.md"


@pytest.fixture
def run(monkeypatch, caplog, capsys):
    """Runs the script in this process; returns its exit code, and what it printed and logged."""

    def run_script(*arguments):
        monkeypatch.setattr("sys.argv", [SCRIPT.name, *arguments])
        monkeypatch.chdir(SCRIPT.parent)
        caplog.clear()
        with caplog.at_level("INFO", "traincheck"), pytest.raises(SystemExit) as caught:
            runpy.run_path(SCRIPT.name, run_name="__main__")
        said = [r.getMessage() for r in caplog.records if r.name == "traincheck"]
        return caught.value.code, capsys.readouterr().out, said

    return run_script


def test_the_healthy_run_is_silent_and_learns(run):
    code, printed, said = run("--on-violation", "raise")
    assert code == 0
    first, last = (float(loss) for loss in re.findall(r"loss (\S+)", printed))
    assert last < first
    (summary,) = said
    assert re.match(r"no violation in \d+ watched of 38 steps|no violation in 38 steps", summary)


def test_the_stale_optimizer_is_caught_as_the_page_shows(run):
    code, printed, said = run("--bug", "stale_optimizer")
    assert code == 1
    assert printed == ""
    shown = re.findall(r"```text\n(traincheck: .*?)```", PAGE.read_text(), re.DOTALL)[0]
    assert shown.startswith(f"traincheck: {said[0]}\n")
    assert re.search(r"^traincheck: 1 critical in 1 step; ", shown, re.MULTILINE)
    assert said[1].startswith("1 critical in 1 step; ")


def test_gradients_that_are_never_cleared_are_caught(run):
    code, _, said = run("--bug", "no_zero_grad")
    assert code == 1
    assert "zero_grad was not called" in said[0]
    assert len(said) == 2


def test_without_stopping_the_broken_run_ends_normally(run):
    code, printed, said = run("--bug", "no_zero_grad", "--on-violation", "warn", "--epochs", "1")
    assert code == 1
    assert "epoch 1 train loss" in printed
    assert len(said) == 2
