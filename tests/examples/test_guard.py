"""The last good run is learned from, and the next one is stopped only if it is broken."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from traincheck_plugin.cli import infer

GUARD = Path(__file__).parent.parent.parent / "examples" / "plain" / "guard.py"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script in this process; returns its exit code and what it printed."""

    def run_script(*arguments):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", [str(GUARD), *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(GUARD), run_name="__main__")
        return caught.value.code, capsys.readouterr().out

    state = torch.get_rng_state()
    yield run_script
    torch.set_rng_state(state)


@pytest.fixture
def invariants(run, tmp_path):
    trace, file = tmp_path / "good_run", tmp_path / "invariants.json"
    assert run("--output-dir", str(trace), "--steps", "30")[0] == 0
    assert infer.main(["-f", str(trace), "-o", str(file)]) == 0
    return str(file)


def test_a_good_run_goes_on(run, invariants, caplog):
    code, printed = run("--invariants", invariants, "--steps", "60")
    assert code == 0
    assert "step  50  loss" in printed
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_broken_run_is_stopped_in_its_first_step(run, invariants, caplog):
    code, printed = run("--invariants", invariants, "--steps", "60", "--bug")
    assert code == 1
    assert len(printed.splitlines()) == 1
    block = " ".join(caplog.records[0].getMessage().split())
    assert block.startswith("WARNING 2 of 4 parameters that Adam.step holds")
    assert "`head.weight`, `head.bias` require gradients and are in no optimizer" in block
    assert "guard.py:41 in train" in block
    assert "first step 0" in block
