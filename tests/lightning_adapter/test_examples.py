"""The examples run: with a bug it is caught, without it nothing is said against the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "lightning"

pytestmark = pytest.mark.slow


def run(tmp_path, script, *arguments):
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_healthy_run_and_what_is_learned_of_it(tmp_path):
    code, printed = run(tmp_path, "digits.py", "--output-dir", "trace", "--invariants", "default")
    assert code == 0, printed
    assert "traincheck: no violation in" in printed
    assert "learn invariants with: traincheck-infer -f" in printed


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        ("frozen_backbone", "AdamW.step updated 0 of 2 parameters"),
        ("no_zero_grad", "zero_grad"),
    ],
)
def test_each_bug_is_caught(tmp_path, bug, told):
    code, printed = run(tmp_path, "digits.py", "--bug", bug)
    assert code == 1, printed
    assert told in printed


def test_the_configuration(tmp_path):
    config = str(EXAMPLES / "config.yaml")
    code, printed = run(tmp_path, "cli.py", "fit", "--config", config, "--trainer.max_epochs", "1")
    assert code == 0, printed
    assert "traincheck: no violation in" in printed
    code, printed = run(
        tmp_path, "cli.py", "fit", "--config", config, "--model.bug", "frozen_backbone"
    )
    assert code == 1, printed
    assert "ViolationError: AdamW.step updated 0 of 2 parameters" in printed
