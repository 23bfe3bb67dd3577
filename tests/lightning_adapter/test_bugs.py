"""Bugs seeded in modules are reported, in time, in the log, in the loggers and as was asked."""

from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import (
    BUGS,
    IGNORED,
    Classifier,
    ForgotZeroGrad,
    FrozenBackbone,
    OthersParameters,
    ReturnsNone,
    loader,
    trainer,
)
from traincheck_plugin import ViolationError
from traincheck_plugin.checker.check import check
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.trace.reader import open_run

pytestmark = [
    *IGNORED,
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller"),
]

EXPECTED = {
    ForgotZeroGrad: "",
    FrozenBackbone: "requires_grad=False",
    ReturnsNone: "no backward ran",
    OthersParameters: "in no",
}


def fit(module, callback, data=None, **options):
    trainer(callback, **options).fit(module, data or loader())
    return callback.report


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("source", ["default", "reference"])
def test_a_bug_is_reported(plain_reference, bug, source):
    invariants = "default" if source == "default" else plain_reference
    report = fit(bug(), TrainCheckCallback(invariants=invariants, log=False))

    assert report.violations
    assert min(v.step for v in report.violations) <= 1
    assert any(d.severity == "critical" for d in report.diagnoses)
    assert EXPECTED[bug] in " ".join(f"{d.message} {d.cause}" for d in report.diagnoses)


class Timed(FrozenBackbone):
    """Notes how many violations were told when a step begins."""

    def __init__(self):
        super().__init__()
        self.told = []

    def on_train_batch_start(self, batch, batch_idx):
        self.told.append(len(self.trainer.callbacks[0].report.violations))


def test_it_is_told_before_the_next_step_begins(caplog):
    module = Timed()
    callback = TrainCheckCallback(invariants="default")
    with caplog.at_level(logging.WARNING, "traincheck"):
        fit(module, callback)
    assert module.told[0] == 0
    assert module.told[1] >= 1
    first, *_, last = [record.getMessage() for record in caplog.records]
    assert "AdamW.step updated 0 of" in first
    assert "first   step 0, epoch 0, training, rank 0" in first
    assert last == callback.report.summary()


def test_a_healthy_run_is_told_in_one_line(caplog, plain_reference):
    with caplog.at_level(logging.INFO, "traincheck"):
        fit(Classifier(), TrainCheckCallback(invariants=plain_reference, every_n_steps=1))
    (record,) = [record for record in caplog.records if record.name == "traincheck"]
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("no violation in 30 steps")


class Numbers(DummyLogger):
    """Keeps the metrics that begin with the prefix of ours."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_metrics(self, metrics, step=None):
        if "traincheck/violations" in metrics:
            assert set(metrics) == {"traincheck/violations", "traincheck/overhead"}
            assert metrics["traincheck/overhead"] > 0
            self.logged.append((step, metrics["traincheck/violations"]))


def test_without_log_nothing_is_told(caplog):
    logger = Numbers()
    with caplog.at_level(logging.INFO, "traincheck"):
        fit(FrozenBackbone(), TrainCheckCallback(invariants="default", log=False), logger=logger)
    assert not [record for record in caplog.records if record.name == "traincheck"]
    assert not logger.logged


def test_metrics_go_to_every_logger():
    loggers = [Numbers(), Numbers()]
    callback = TrainCheckCallback(invariants="default")
    # A critical bug at step 0, and Lightning logs at the end of every fifth step.
    fit(FrozenBackbone(), callback, logger=loggers, log_every_n_steps=5, max_epochs=1)
    assert loggers[0].logged == loggers[1].logged
    steps = [step for step, _ in loggers[0].logged]
    assert steps == [0, 4, 9]
    assert all(number == len(callback.report.diagnoses) for _, number in loggers[0].logged)


def test_metrics_of_accumulated_batches_are_logged_once_a_step(plain_reference):
    logger = Numbers()
    callback = TrainCheckCallback(invariants="default")
    fit(Classifier(), callback, logger=logger, log_every_n_steps=1, accumulate_grad_batches=4)
    assert logger.logged == [(step, 0) for step in range(9)]


def test_a_logger_that_fails_disturbs_nothing(caplog):
    class Broken(DummyLogger):
        def log_metrics(self, metrics, step=None):
            if "traincheck/violations" in metrics:
                raise OSError("no network")

    module = FrozenBackbone()
    with caplog.at_level(logging.WARNING, "traincheck"):
        fit(module, TrainCheckCallback(invariants="default"), logger=Broken())
    assert len(module.losses) == 30
    assert "OSError: no network" in caplog.text


def test_raise_ends_the_step_that_broke_the_rule():
    module = FrozenBackbone()
    callback = TrainCheckCallback(invariants="default", on_violation="raise", log=False)
    with pytest.raises(ViolationError, match="updated 0 of"):
        fit(module, callback)
    assert len(module.losses) == 1
    assert callback.report.violations


def test_stop_ends_the_fit_cleanly():
    module = FrozenBackbone()
    callback = TrainCheckCallback(invariants="default", on_violation="stop", log=False)
    fitting = trainer(callback, min_epochs=0)
    fitting.fit(module, loader())
    assert fitting.state.finished
    assert fitting.should_stop
    assert len(module.losses) == 1


def test_a_function_is_called_and_may_raise():
    told = []

    def stop(diagnosis):
        told.append(diagnosis)
        raise ZeroDivisionError

    module = FrozenBackbone()
    callback = TrainCheckCallback(invariants="default", on_violation=stop, log=False)
    with pytest.raises(ZeroDivisionError):
        fit(module, callback)
    assert len(module.losses) == 1
    assert told == list(callback.report.diagnoses)


def told(violations):
    return sorted(
        (
            v.invariant.relation,
            repr(v.invariant.params),
            v.message,
            v.step,
            v.last_step,
            v.num_occurrences,
            v.rank,
            v.stage,
            v.epoch,
            v.source,
        )
        for v in violations
    )


@pytest.mark.parametrize("bug", [*BUGS, Classifier])
@pytest.mark.parametrize("val", [False, True])
def test_the_trace_checked_offline_gives_the_same(lightning_reference, tmp_path, bug, val):
    callback = TrainCheckCallback(
        invariants=lightning_reference, output_dir=tmp_path / "trace", log=False
    )
    trainer(callback).fit(bug(), loader(), loader(2) if val else None)
    live = callback.report

    offline = check(open_run(tmp_path / "trace"), load_invariants(lightning_reference))
    violations = [v for outcome in offline.outcomes for v in outcome.violations]
    live_violations = [v for outcome in live.result.outcomes for v in outcome.violations]
    assert told(live_violations) == told(violations)
    assert bool(live.violations) == (bug is not Classifier)
    assert [d.message for d in live.result.diagnoses] == [d.message for d in offline.diagnoses]
    assert live.result.num_steps == offline.num_steps == 30


def test_a_bug_that_begins_late_is_found(plain_reference):
    class Late(Classifier):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                for group in self.optimizers().param_groups:
                    for parameter in group["params"]:
                        parameter.requires_grad_(False)
                self.net[3].weight = torch.nn.Parameter(self.net[3].weight.detach().clone())

    report = fit(Late(), TrainCheckCallback(invariants=plain_reference, every_n_steps=1, log=False))
    assert min(v.step for v in report.violations) in (10, 11)
