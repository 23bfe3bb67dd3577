"""The scripts of the tutorial run, and go wrong, or do not, as the tutorial tells."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

TUTORIAL = Path(__file__).parent.parent.parent / "examples" / "tutorial"


@pytest.fixture(autouse=True)
def restored_torch():
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(num_threads)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process, as `python SCRIPT ARGUMENTS` does; returns what it printed."""

    def run_script(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(TUTORIAL / name), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_mnist_learns(run):
    printed = run("mnist.py", "--epochs", "1", "--batches-per-epoch", "20")
    (correct,) = re.findall(r"accuracy (\d+)/1000", printed)
    assert int(correct) > 500


@pytest.mark.parametrize("optimizer", ["adam", "adadelta"])
def test_the_broken_fine_tuning_ends_normally(run, optimizer):
    quick = ("--epochs", "1", "--batches-per-epoch", "2", "--batch-size", "4")
    printed = run("forum_84911.py", "--optimizer", optimizer, *quick)
    assert re.fullmatch(r"Epoch 1: train loss \d.* accuracy .*, valid loss .*\n", printed)


@pytest.mark.parametrize("fixed", [False, True])
def test_only_the_fixed_fine_tuning_changes_the_last_layer(fixed):
    script = runpy.run_path(str(TUTORIAL / "forum_84911.py"))
    torch.manual_seed(0)
    model = script["build_model"](fixed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8)), batch_size=4)
    optimizer = optim.Adam(model._fc.parameters(), lr=1e-3)

    script["train"](model, batches, nn.CrossEntropyLoss(), optimizer, torch.device("cpu"))

    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {name for name, _ in model.named_buffers()}
    assert changed & statistics
    assert changed - statistics == ({"_fc.weight", "_fc.bias"} if fixed else set())
