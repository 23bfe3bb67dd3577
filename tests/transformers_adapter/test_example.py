"""The example runs as its page and its docstring say: caught with a bug, silent without."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "transformers" / "sentences.py"
MESSAGES = {
    "adapter": "critical: AdamW.step updated 0 of 1 parameter",
    "optimizer": "critical: AdamW.step updated 0 of 41 parameters",
    "detach": "warning: 39 of 41 parameters that AdamW.step holds had no gradient",
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script in this process; returns what it printed."""

    def run_script(*arguments):
        monkeypatch.setattr("sys.argv", [SCRIPT.name, *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_the_fixed_run_is_silent(run):
    printed = run()
    assert "diagnoses: 0" in printed
    assert "'traincheck/violations': '0'" in printed


@pytest.mark.parametrize("bug", MESSAGES)
def test_a_bug_is_caught(run, bug):
    assert MESSAGES[bug] in run("--bug", bug)


def test_the_test_knows_every_bug():
    assert set(runpy.run_path(str(SCRIPT))["BUGS"]) == set(MESSAGES)
