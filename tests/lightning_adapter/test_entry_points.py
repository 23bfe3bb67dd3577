"""The environment adds the callback to every trainer, without a line of code."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import entry_points

import lightning_fabric
import pytest
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import ModelCheckpoint
from traincheck_lightning import TrainCheckCallback
from traincheck_lightning.environment import EnvironmentCallback
from traincheck_lightning.factory import environment_callbacks

from tests.lightning_adapter.modules import IGNORED, Classifier, FrozenBackbone, loader, trainer
from traincheck_plugin import InvariantError, watch

GROUPS = ["lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"]

pytestmark = [*IGNORED, pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")]


def ours(callbacks):
    return [one for one in callbacks if isinstance(one, TrainCheckCallback)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_package_finds_the_factory(group):
    (found,) = entry_points(group=f"{group}.callbacks_factory", name="traincheck")
    assert found.load() is environment_callbacks


@pytest.mark.parametrize("make", [trainer, lambda: trainer(package="pytorch_lightning")])
def test_nothing_is_added_unless_the_environment_asks(monkeypatch, make):
    assert not ours(make().callbacks)
    monkeypatch.setenv("TRAINCHECK_INVARIANTS", "default")
    assert len(ours(make().callbacks)) == 1
    monkeypatch.setenv("TRAINCHECK_DISABLE", "1")
    assert not ours(make().callbacks)


@pytest.mark.parametrize("kind", [Fabric, lightning_fabric.Fabric])
def test_fabric_likewise(monkeypatch, kind):
    assert not ours(kind(accelerator="cpu")._callbacks)
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", "trace")
    assert len(ours(kind(accelerator="cpu")._callbacks)) == 1


def test_a_run_that_the_environment_has_watched(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TRAINCHECK_INVARIANTS", "default")
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", str(tmp_path / "trace"))
    fitting = trainer()
    with caplog.at_level(logging.WARNING, "traincheck"):
        fitting.fit(FrozenBackbone(), loader())
    assert "AdamW.step updated 0 of" in caplog.text
    assert (tmp_path / "trace" / "manifest.json").exists()


def test_it_leaves_the_watching_to_a_callback_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", str(tmp_path / "environment"))
    own = TrainCheckCallback(output_dir=tmp_path / "own", log=False)
    trainer(own, max_epochs=1).fit(Classifier(), loader())
    assert own.report.num_steps == 10
    assert not own.report.problems
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_it_leaves_the_watching_to_a_callback_of_the_module(monkeypatch, tmp_path):
    own = TrainCheckCallback(output_dir=tmp_path / "own", log=False)
    module = Classifier()
    module.configure_callbacks = lambda: [own]
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", str(tmp_path / "environment"))
    trainer(max_epochs=1).fit(module, loader())
    assert own.report.num_steps == 10
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_it_leaves_the_watching_to_what_watches_already(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", str(tmp_path / "environment"))
    with watch(output_dir=tmp_path / "own", log=False) as monitor:
        trainer(max_epochs=1).fit(Classifier(), loader())
    assert monitor.report.num_steps == 10
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_it_leaves_the_watching_to_a_callback_of_the_user_in_fabric(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINCHECK_OUTPUT_DIR", str(tmp_path / "environment"))
    own = TrainCheckCallback(output_dir=tmp_path / "own", log=False)
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[own])
    module = Classifier()
    model, optimizer = fabric.setup(module.net, module.configure_optimizers())
    fabric.call("on_train_start")
    for x, _ in loader(3):
        optimizer.zero_grad()
        fabric.backward(model(x).square().mean())
        optimizer.step()
    fabric.call("on_train_end")
    assert own.report.num_steps == 3
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_it_keeps_nothing_in_checkpoints(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINCHECK_INVARIANTS", "default")
    fitting = trainer(ModelCheckpoint(tmp_path), enable_checkpointing=True, max_epochs=1)
    fitting.fit(Classifier(), loader())
    (path,) = tmp_path.glob("*.ckpt")
    monkeypatch.delenv("TRAINCHECK_INVARIANTS")
    # A warning here, of a callback that is missing, would be an error.
    saving = ModelCheckpoint(tmp_path)
    trainer(saving, enable_checkpointing=True, max_epochs=2).fit(
        Classifier(), loader(), ckpt_path=path
    )


@pytest.mark.parametrize(
    ("name", "value"), [("TRAINCHECK_DISABLE", "perhaps"), ("WORLD_SIZE", "many")]
)
def test_it_never_raises(monkeypatch, caplog, name, value):
    monkeypatch.setenv("TRAINCHECK_INVARIANTS", "default")
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING, "traincheck"):
        assert environment_callbacks() == []
    assert "this run is not watched: ConfigError" in caplog.text


def test_a_file_that_is_missing_is_told_by_the_fit(monkeypatch):
    monkeypatch.setenv("TRAINCHECK_INVARIANTS", "missing.json")
    fitting = trainer()
    with pytest.raises(InvariantError, match=r"missing\.json"):
        fitting.fit(Classifier(), loader())


def test_asking_imports_nothing_heavy():
    program = (
        "import sys; from traincheck_lightning.factory import environment_callbacks as callbacks; "
        "print(callbacks(), {'torch', 'lightning', 'pytorch_lightning'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] set()"


def test_the_names_of_the_states_differ():
    assert EnvironmentCallback().state_key != TrainCheckCallback().state_key
