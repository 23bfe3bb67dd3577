"""The callback in the configuration of a `LightningCLI`."""

from __future__ import annotations

import sys

import pytest
from lightning.pytorch.cli import LightningCLI
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import IGNORED, Classifier, loader
from traincheck_plugin import ViolationError

pytestmark = [
    *IGNORED,
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller"),
]


class Frozen(Classifier):
    def __init__(self, lr: float = 0.01, frozen: bool = False):
        super().__init__(lr=lr)
        self.frozen = frozen

    def train_dataloader(self):
        return loader()

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.frozen:
            self.requires_grad_(False)
            self.net[0].bias.requires_grad_(True)
            optimizer.param_groups[0]["params"] = [self.net[0].weight]
        return optimizer


CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: traincheck_lightning.TrainCheckCallback
      init_args:
        invariants: {invariants}
        output_dir: trace
        on_violation: {on_violation}
        max_overhead: 0.05
        every_n_steps: 1
        warm_up_steps: 3
        parameters: ["net.*"]
        log: false
"""


def run(monkeypatch, tmp_path, *arguments, invariants="default", on_violation="warn"):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(invariants=invariants, on_violation=on_violation))
    arguments = ["fit", "--config", str(config), *arguments]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cli = LightningCLI(Frozen, args=arguments, save_config_callback=None, seed_everything_default=1)
    (callback,) = [c for c in cli.trainer.callbacks if isinstance(c, TrainCheckCallback)]
    return callback


@pytest.mark.parametrize("invariants", ["default", "[default, default]", "null"])
def test_a_config_with_every_option(monkeypatch, tmp_path, invariants):
    callback = run(monkeypatch, tmp_path, invariants=invariants)
    options = callback._options
    assert (options.max_overhead, options.every_n_steps, options.warm_up_steps) == (0.05, 1, 3)
    assert (options.variables, options.log, options.output_dir) == (("net.*",), False, "trace")
    assert callback.report.num_steps == 10
    assert not callback.report.violations


def test_a_bug_raises(monkeypatch, tmp_path):
    with pytest.raises(ViolationError):
        run(monkeypatch, tmp_path, "--model.frozen", "true", on_violation="raise")


def test_a_wrong_option_is_refused_by_the_parser(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, on_violation="shout")
    assert "on_violation" in capsys.readouterr().err


def test_the_help_tells_the_arguments(monkeypatch, capsys):
    name = "traincheck_lightning.TrainCheckCallback"
    with pytest.raises(SystemExit):
        LightningCLI(Frozen, args=["fit", "--trainer.callbacks.help", name])
    told = " ".join(capsys.readouterr().out.split())
    assert "the share of the training's time that watching may take" in told


def test_by_class_name_on_the_command_line(monkeypatch, tmp_path):
    callback = run(monkeypatch, tmp_path, "--trainer.callbacks.warm_up_steps=7")
    assert callback._options.warm_up_steps == 7
