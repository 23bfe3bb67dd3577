"""With the default budget every step is watched for a while when something begins or goes wrong."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from traincheck_lightning import TrainCheckCallback

from tests.lightning_adapter.modules import IGNORED, NUM_BATCHES, Classifier, loader, trainer
from tests.watched import ATTENTION, OPTIONS, watched_steps

pytestmark = [
    *IGNORED,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Forgetful(Classifier):
    """Clears no gradients before the last attentive step."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if self.global_step != ATTENTION - 1:
            optimizer.zero_grad()


@pytest.fixture
def watched(monkeypatch):
    return watched_steps(monkeypatch)


@pytest.mark.parametrize("was_watched", [True, False])
def test_after_the_start_and_after_a_resumption(watched, tmp_path, was_watched):
    callbacks = [TrainCheckCallback(**OPTIONS)] if was_watched else []
    first = trainer(*callbacks, ModelCheckpoint(tmp_path), enable_checkpointing=True, max_epochs=2)
    first.fit(Classifier(), loader())
    assert watched == (list(range(ATTENTION)) if was_watched else [])
    watched.clear()

    callback = TrainCheckCallback(**OPTIONS)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    trainer(callback, max_epochs=4).fit(Classifier(), loader(), ckpt_path=checkpoint)
    start = 2 * NUM_BATCHES
    assert watched == list(range(start, start + ATTENTION))
    assert callback.report.num_steps == 2 * NUM_BATCHES


def test_after_a_violation(watched):
    callback = TrainCheckCallback(**OPTIONS)
    trainer(callback).fit(Forgetful(), loader())
    assert [violation.step for violation in callback.report.violations] == [ATTENTION - 1]
    assert watched == list(range(2 * ATTENTION))
