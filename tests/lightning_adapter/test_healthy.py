"""What healthy runs of Lightning do is never reported, whatever the rules were learned from."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import (
    IGNORED,
    Classifier,
    Gan,
    ManualClassifier,
    loader,
    train_plain,
    trainer,
)
from traincheck_plugin import watch

pytestmark = IGNORED


def check(reference, module, *callbacks, val=False, data=None, **options):
    """Train *module* and return the report."""
    callback = TrainCheckCallback(invariants=[reference, "default"], every_n_steps=1)
    fitting = trainer(callback, *callbacks, **options)
    fitting.fit(module, data or loader(), loader(2) if val else None)
    report = callback.report
    # What the reference says of its own model is not for another one.
    assert all(problem.endswith("this run trains another one") for problem in report.problems)
    assert report.totals.num_passed >= 4
    assert report.num_steps > 0
    return report


def assert_healthy(*arguments, **options):
    report = check(*arguments, **options)
    assert [d.message for d in report.diagnoses] == []
    return report


class Accumulates(Classifier):
    """Steps on every third batch and on the last."""


class WithDropoutAndSchedule(Classifier):
    def __init__(self):
        super().__init__()
        self.net.append(nn.Dropout(0.1))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Plateau(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"},
        }


class ManualAccumulation(ManualClassifier):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(self.loss_of(batch) / 2)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()


class ConfiguredLate(Classifier):
    """Makes its layers in `configure_model`, and its optimizer on its own."""

    def __init__(self):
        super().__init__()
        self.net = None

    def configure_model(self):
        if self.net is None:
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class LateClosure(Classifier):
    """LBFGS calls the closure of a step many times."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Tuned(Classifier):
    """A backbone that is frozen at first."""

    def __init__(self, **options):
        super().__init__(**options)
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def loss_of(self, batch):
        x, y = batch
        return super().loss_of((self.backbone(x), y))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr)


def named(one):
    return getattr(one, "__name__", None) or "+".join(one) or "plainly"


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Classifier, {}),
        (Classifier, {"val": True, "num_sanity_val_steps": 2, "val_check_interval": 0.5}),
        (Classifier, {"gradient_clip_val": 0.01}),
        (Classifier, {"reload_dataloaders_every_n_epochs": 1}),
        (WithDropoutAndSchedule, {}),
        (ConfiguredLate, {}),
        (ManualClassifier, {}),
        (Gan, {}),
    ],
    ids=named,
)
def test_rules_of_another_loop_hold(reference, module, options):
    assert_healthy(reference, module(), **options)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Classifier, {"accumulate_grad_batches": 3}),  # 10 batches: the last window has one
        (Classifier, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
        (Classifier, {"limit_train_batches": 4}),
        (Classifier, {"overfit_batches": 2}),
        (Classifier, {"detect_anomaly": True, "max_steps": 20}),
        (Plateau, {"val": True}),
        (LateClosure, {"max_epochs": 1}),
        (ManualAccumulation, {}),
        (Gan, {}),
    ],
    ids=named,
)
def test_rules_of_a_run_of_the_same_kind_hold(learn, module, options):
    assert_healthy(learn(module(), **options), module(), **options)


@pytest.mark.parametrize("options", [{"fast_dev_run": 3}, {"max_steps": 5}], ids=named)
def test_short_runs(plain_reference, options):
    assert_healthy(plain_reference, Classifier(), val=True, **options)


def half(precision="16-mixed"):
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0) if precision == "16-mixed" else None
    return MixedPrecision(precision, "cpu", scaler=scaler)


class Overflows(Classifier):
    """Its gradients overflow in some of the batches."""

    def loss_of(self, batch):
        loss = super().loss_of(batch)
        return loss * float("inf") if len(self.losses) % 4 == 2 else loss


class ManualOverflows(Overflows, ManualClassifier):
    pass


@pytest.mark.parametrize("module", [Classifier, ManualClassifier, Overflows, ManualOverflows])
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_lower_precision(learn, module, precision):
    if precision == "bf16-mixed" and issubclass(module, Overflows):
        pytest.skip("nothing makes up for an overflow there")
    reference = learn(Classifier(), plugins=half(precision))
    plugin = half(precision)
    model = module()
    # By hand there is no moment at which they are unscaled and not yet used.
    model.clips = precision == "bf16-mixed"
    assert_healthy(reference, model, plugins=plugin)
    if issubclass(module, Overflows):
        assert plugin.scaler.get_scale() < 16


def test_clipping_by_hand_what_is_still_scaled_is_reported(learn):
    reference = learn(Classifier(), plugins=half("16-mixed"))
    report = check(reference, ManualClassifier(), plugins=half("16-mixed"))
    (diagnosis,) = report.diagnoses
    assert diagnosis.cause == "the gradients are still scaled: unscale_ was not called before"


def test_another_precision_than_the_reference_had_is_reported(plain_reference):
    report = check(plain_reference, Classifier(), plugins=half("bf16-mixed"))
    (diagnosis,) = report.diagnoses
    assert "has dtype torch.bfloat16, expected torch.float32" in diagnosis.message


@pytest.mark.parametrize(
    "callback",
    [
        lambda: EarlyStopping("val_loss", stopping_threshold=10.0),
        lambda: StochasticWeightAveraging(swa_lrs=0.005, swa_epoch_start=1),
        lambda: WeightAveraging(),
        lambda: LearningRateFinder(num_training_steps=10),
    ],
    ids=["early_stopping", "swa", "weight_averaging", "lr_finder"],
)
@pytest.mark.filterwarnings("ignore:.*swa:UserWarning")
def test_callbacks_that_change_the_training(reference, callback):
    assert_healthy(reference, Classifier(), callback(), val=True)


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
def test_a_backbone_that_is_unfrozen_later(learn):
    def finetuning():
        return BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)

    module = Tuned()
    assert_healthy(learn(Tuned(lr=0.02), finetuning()), module, finetuning())
    assert module.backbone[0].weight.requires_grad


@pytest.mark.parametrize("module", [Classifier, ManualClassifier])
def test_rules_of_lightning_hold_in_a_plain_loop(lightning_reference, module):
    plain = module()
    with watch(plain, invariants=lightning_reference, every_n_steps=1, log=False) as monitor:
        train_plain(plain)
    assert [d.message for d in monitor.report.diagnoses] == []
    assert monitor.report.totals.num_passed >= 10


def test_rules_of_the_same_module_are_all_checked(plain_reference):
    assert assert_healthy(plain_reference, Classifier()).totals.num_passed >= 10
