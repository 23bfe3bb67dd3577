"""What a healthy plain loop teaches holds under a healthy Trainer, and the other way round."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from traincheck_transformers import TrainCheckCallback
from transformers import Adafactor, Trainer

from tests.transformers_adapter.training import (
    bert,
    gpt2,
    learn,
    learn_from_plain_loops,
    plain_loop,
    sentences,
    trainer,
    watched_plain_loop,
)
from traincheck_plugin import watch

MODELS = {"bert": (bert, False), "gpt2": (gpt2, True)}


@pytest.fixture(scope="module", params=MODELS)
def task(request):
    make_model, are_targets = MODELS[request.param]
    return make_model, sentences(are_targets=are_targets)


@pytest.fixture(scope="module")
def of_plain_loops(task, tmp_path_factory):
    return learn_from_plain_loops(tmp_path_factory.mktemp("plain"), *task)


@pytest.fixture(scope="module")
def of_trainers(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    make_model, data = task
    settings = {
        "simple": {"num_train_epochs": 2, "eval_strategy": "epoch"},
        "other": {
            "num_train_epochs": 6,
            "gradient_accumulation_steps": 5,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 3,
        },
    }
    for name, changes in settings.items():
        callback = TrainCheckCallback(output_dir=folder / name, log=False)
        trainer(folder, callback, model=make_model(), data=data, **changes).train()
    return learn(folder / "rules.json", *(folder / name for name in settings))


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = outputs.loss + 1e-4 * sum(p.square().sum() for p in model.parameters())
        return (loss, outputs) if return_outputs else loss


HEALTHY = {
    "simple": {},
    "accumulation": {"gradient_accumulation_steps": 4},
    "uneven accumulation": {"gradient_accumulation_steps": 5, "num_train_epochs": 2},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True},
    "best model": {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "num_train_epochs": 2,
    },
    "bf16": {"bf16": True},
    "no clipping": {"max_grad_norm": 0.0},
    "warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 3, "max_steps": 15},
    "constant": {"lr_scheduler_type": "constant"},
    "own loss": {"cls": OwnLoss},
    "another optimizer": {"optim": "adafactor", "learning_rate": 1e-2},
    "decay": {"weight_decay": 0.1, "optim": "sgd", "learning_rate": 0.1},
}

healthy = pytest.mark.parametrize("changes", HEALTHY.values(), ids=HEALTHY)


@healthy
def test_rules_of_plain_loops_hold_under_the_trainer(tmp_path, task, of_plain_loops, changes):
    make_model, data = task
    callback = TrainCheckCallback(invariants=of_plain_loops, every_n_steps=1, log=False)

    trainer(tmp_path, callback, model=make_model(), data=data, **changes).train()

    assert [d.message for d in callback.report.diagnoses] == []
    assert callback.report.problems == ()
    assert callback.report.totals.num_passed >= 10


@healthy
def test_rules_of_trainers_hold_under_the_trainer(tmp_path, task, of_trainers, changes):
    make_model, data = task
    callback = TrainCheckCallback(invariants=of_trainers, every_n_steps=1, log=False)

    trainer(tmp_path, callback, model=make_model(), data=data, **changes).train()

    assert [d.message for d in callback.report.diagnoses] == []


@pytest.mark.parametrize("accumulate", [1, 5])
def test_rules_of_trainers_hold_in_a_plain_loop(task, of_trainers, accumulate):
    make_model, data = task
    model = make_model()
    with watch(model, invariants=of_trainers, every_n_steps=1, log=False) as monitor:
        plain_loop(model, data, accumulate=accumulate)
    assert [d.message for d in monitor.report.diagnoses] == []
    assert monitor.report.totals.num_passed >= 10


def test_an_optimizer_and_a_schedule_of_the_user(tmp_path, task, of_plain_loops):
    make_model, data = task
    model = make_model()
    optimizer = Adafactor(model.parameters(), lr=1e-3, relative_step=False)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    callback = TrainCheckCallback(invariants=of_plain_loops, log=False)

    trainer(
        tmp_path,
        callback,
        model=model,
        data=data,
        others={"optimizers": (optimizer, schedule)},
    ).train()

    assert callback.report.violations == ()
    assert callback.report.num_steps == 12


def test_a_model_that_is_no_pretrained_one(tmp_path, of_plain_loops):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.EmbeddingBag(40, 8)
            self.head = nn.Linear(8, 40)

        def forward(self, input_ids, labels):
            return {
                "loss": nn.functional.cross_entropy(
                    self.head(self.embedding(input_ids)), labels.reshape(len(input_ids), -1)[:, 0]
                )
            }

    torch.manual_seed(0)
    callback = TrainCheckCallback(invariants=of_plain_loops, log=False)
    trainer(tmp_path, callback, model=Net()).train()
    assert callback.report.violations == ()


OTHER_SETTINGS = {
    "accumulation": {"gradient_accumulation_steps": 4},
    "tiny updates": {"optim": "sgd", "num_train_epochs": 2},
    "warm-up": {"warmup_steps": 3},
    "constant": {"lr_scheduler_type": "constant"},
}


@pytest.mark.parametrize("changes", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_rules_of_one_plain_loop_allow_other_settings(tmp_path, changes):
    data = sentences(are_targets=True)
    rules = learn(tmp_path / "rules.json", watched_plain_loop(tmp_path / "plain", gpt2, data))
    callback = TrainCheckCallback(invariants=rules, every_n_steps=1, log=False)

    trainer(tmp_path, callback, model=gpt2(), data=data, **changes).train()

    assert [d.message for d in callback.report.diagnoses] == []
