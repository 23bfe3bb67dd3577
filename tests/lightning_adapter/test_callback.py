"""A run with the callback is the run without it, however it goes and ends."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re
import subprocess
import sys

import lightning as L  # noqa: N812
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import (
    IGNORED,
    Classifier,
    FrozenBackbone,
    Gan,
    ManualClassifier,
    PLClassifier,
    loader,
    trainer,
)
from traincheck_plugin import ConfigError, InvariantError
from traincheck_plugin.trace.reader import open_run

pytestmark = [*IGNORED, pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")]


def outcome(module, *callbacks, **options):
    """Return everything that a training leaves behind."""
    torch.manual_seed(3)
    fitting = trainer(*callbacks, **options)
    validation = None if isinstance(module, Gan) else loader(2)
    fitting.fit(module, loader(shuffle=True), validation)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return module.losses, weights, torch.get_rng_state(), torch.rand(2).tolist()


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    assert torch.equal(one[2], other[2])
    assert one[3] == other[3]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Classifier, {}),
        (Classifier, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
        (Classifier, {"precision": "bf16-mixed"}),
        (ManualClassifier, {}),
        (Gan, {}),
        (FrozenBackbone, {}),
    ],
)
def test_losses_weights_and_random_state_are_bit_identical(tmp_path, module, options):
    expected = outcome(module(), **options)
    checking = TrainCheckCallback(invariants="default", every_n_steps=1, log=False)
    assert_same(outcome(module(), checking, **options), expected)
    writing = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    assert_same(outcome(module(), writing, **options), expected)


@pytest.mark.parametrize("module", [Classifier, PLClassifier])
def test_either_package(module):
    package = "lightning" if module is Classifier else "pytorch_lightning"
    callback = TrainCheckCallback(invariants="default", log=False)
    assert isinstance(callback, L.Callback)
    assert isinstance(callback, pytorch_lightning.Callback)
    trainer(callback, package=package).fit(module(), loader())
    assert callback.report.totals.num_passed >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        (["pytorch_lightning as pl", "traincheck_lightning"], "True False"),
        (["traincheck_lightning", "lightning.pytorch as pl"], "True False"),
    ],
)
def test_the_base_is_that_of_what_is_imported(imports, expected):
    program = "\n".join(
        [
            *(f"import {module}" for module in imports),
            "import sys",
            "callback = sys.modules['traincheck_lightning'].TrainCheckCallback()",
            "both = 'lightning.pytorch' in sys.modules and 'pytorch_lightning' in sys.modules",
            "print(isinstance(callback, pl.Callback), both)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


class Fails(Callback):
    """Raises in the middle of the second epoch."""

    def __init__(self, error):
        self.error = error

    def on_before_zero_grad(self, trainer, module, optimizer):
        if trainer.current_epoch == 1:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "how"),
    [
        (ValueError("lost"), ValueError, "exception"),
        (KeyboardInterrupt(), SystemExit, "interrupted"),
        (SystemExit(3), SystemExit, "exit"),
    ],
    ids=["exception", "interrupt", "exit"],
)
def test_a_run_that_is_cut_short_is_ended_and_leaves_nothing(tmp_path, error, raised, how):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    with pytest.raises(raised):
        trainer(callback, Fails(error)).fit(Classifier(), loader())
    assert not callback._monitor.is_watching
    run = open_run(tmp_path / "trace")
    assert run.ranks[0].end.outcome.how == how
    assert callback.report.num_steps == 10


@pytest.mark.parametrize("place", ["setup", "configure_optimizers", "training_step"])
def test_an_exception_of_the_module(place):
    module = Classifier()
    setattr(module, place, lambda *_, **__: 1 / 0)
    callback = TrainCheckCallback(invariants="default", log=False)
    with pytest.raises(ZeroDivisionError):
        trainer(callback).fit(module, loader())
    assert not callback._monitor.is_watching


def test_several_fits_in_one_process(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    fitting = trainer(callback, max_epochs=1)
    module = Classifier()
    fitting.fit(module, loader())
    fitting.fit_loop.max_epochs = 2
    fitting.fit(module, loader())
    assert callback.report.num_steps == 10
    assert callback.state_dict() == {"step": 20}

    trainer(callback, max_epochs=1).fit(Classifier(), loader())
    assert callback.state_dict() == {"step": 10}
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "trace-2", "trace-3"}


def test_the_report_of_a_fit_is_its_own():
    callback = TrainCheckCallback(invariants="default", log=False)
    trainer(callback, max_epochs=1).fit(FrozenBackbone(), loader())
    assert callback.report.violations
    trainer(callback, max_epochs=1).fit(Classifier(), loader())
    assert not callback.report.violations


@pytest.fixture
def checkpoint(tmp_path):
    callback = TrainCheckCallback(invariants="default", log=False)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1)
    fitting = trainer(callback, saving, enable_checkpointing=True, max_steps=14)
    fitting.fit(Classifier(), loader())
    return tmp_path / "epoch=1-step=14.ckpt"


def test_the_state_in_a_checkpoint_is_plain(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded["callbacks"]["TrainCheckCallback"] == {"step": 14}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`.*ModelCheckpoint")
@pytest.mark.parametrize("has_state", [True, False])
def test_a_resumed_run_counts_on(checkpoint, has_state):
    if not has_state:
        content = torch.load(checkpoint, weights_only=False)
        del content["callbacks"]["TrainCheckCallback"]
        torch.save(content, checkpoint)
    callback = TrainCheckCallback(invariants="default", log=False)
    module = Classifier()
    fitting = trainer(callback, max_epochs=3)
    fitting.fit(module, loader(), ckpt_path=checkpoint)
    assert callback.report.num_steps == 16
    assert abs(callback.state_dict()["step"] - 30) <= (0 if has_state else 1)
    assert not callback.report.violations


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_is_resumed_without_the_callback(checkpoint):
    module = Classifier()
    trainer(max_epochs=3).fit(module, loader(), ckpt_path=checkpoint)
    assert len(module.losses) == 16


def test_validation_and_test_alone_are_not_watched(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace")
    fitting = trainer(callback)
    fitting.validate(Classifier(), loader(), verbose=False)
    assert not (tmp_path / "trace").exists()
    assert callback.report.num_steps == 0


def test_after_the_fit_validation_is_not_watched():
    callback = TrainCheckCallback(invariants="default", log=False)
    fitting = trainer(callback, max_epochs=1)
    module = Classifier()
    fitting.fit(module, loader())
    before = callback.report
    fitting.validate(module, loader(), verbose=False)
    assert callback.report == before


def test_barebones_does_nothing(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace")
    options = {"logger": None, "enable_checkpointing": None}
    options |= {"enable_progress_bar": None, "enable_model_summary": None}
    module = FrozenBackbone()
    module.log = lambda *_, **__: None
    fitting = trainer(callback, barebones=True, max_epochs=1, **options)
    fitting.fit(module, loader())
    assert not (tmp_path / "trace").exists()
    assert callback.report.num_steps == 0


def test_the_kill_switch(monkeypatch, tmp_path):
    monkeypatch.setenv("TRAINCHECK_DISABLE", "1")
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", on_violation="raise")
    trainer(callback, max_epochs=1).fit(FrozenBackbone(), loader())
    assert not (tmp_path / "trace").exists()


def test_before_and_after_a_run_it_is_pickled_and_copied():
    callback = TrainCheckCallback(invariants="default", warm_up_steps=3, log=False)
    fitting = trainer(callback, max_epochs=1)
    pickle.loads(pickle.dumps(fitting))  # noqa: S301  # our own
    fitting.fit(Classifier(), loader())
    for copied in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):  # noqa: S301
        assert copied.state_dict() == {"step": 10}
        trainer(copied, max_epochs=1).fit(FrozenBackbone(), loader())
        assert copied.report.violations
    assert not callback.report.violations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_violation": "shout"}, "expected on_violation to be 'warn', 'stop', 'raise'"),
        ({"max_overhead": 2.0}, "expected max_overhead to be a share"),
        ({"every_n_steps": 0}, "expected every_n_steps to be at least 1"),
        ({"warm_up_steps": -1}, "expected warm_up_steps to be 0 or more"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainCheckCallback(**options)


def test_a_missing_file_is_told_before_the_training_begins():
    module = Classifier()
    with pytest.raises(InvariantError, match=r"missing\.json"):
        trainer(TrainCheckCallback(invariants="missing.json")).fit(module, loader())
    assert not module.losses


def test_a_failure_of_its_own_reads_as_one(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("traincheck_plugin.checker.rank_check.RankCheck.observe", fail)
    expected = outcome(Classifier())
    callback = TrainCheckCallback(invariants="default")
    with caplog.at_level(logging.INFO, "traincheck"):
        assert_same(outcome(Classifier(), callback), expected)
    assert any("a defect" in problem for problem in callback.report.problems)
    assert "no violation in" not in caplog.text


def test_the_parameters_that_are_watched_can_be_chosen(plain_reference):
    callback = TrainCheckCallback(invariants=plain_reference, parameters=["net.3.*"], log=False)
    trainer(callback).fit(FrozenBackbone(), loader())
    texts = " ".join(d.message + str(d.cause) for d in callback.report.diagnoses)
    assert not re.search(r"net\.[01]\.", texts)


def test_after_the_first_steps_only_some_are_watched():
    callback = TrainCheckCallback(invariants="default", warm_up_steps=5, log=False)
    trainer(callback, max_epochs=5).fit(Classifier(), loader(20))
    assert 5 <= callback.report.result.num_steps < callback.report.num_steps == 100


def test_manual_optimization_shows_what_the_framework_does(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    trainer(callback, max_epochs=1).fit(Gan(), loader())
    names = {
        api.name for w in open_run(tmp_path / "trace").ranks[0].windows() for api in w.catalog.apis
    }
    assert {
        f"lightning.pytorch.LightningModule.{name}"
        for name in ("manual_backward", "toggle_optimizer", "untoggle_optimizer")
    } <= names
    manifest = json.loads((tmp_path / "trace" / "manifest.json").read_text())
    assert manifest["world_size"] == 1
