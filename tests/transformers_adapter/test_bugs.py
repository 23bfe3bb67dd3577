"""Silent bugs that users of the Trainer met, each with its healthy twin, which taught the rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from traincheck_transformers import TrainCheckCallback
from transformers import Trainer

from tests.transformers_adapter.training import bert, gpt2, learn, sentences, trainer

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")


class Adapter(nn.Module):
    """A low-rank correction of a frozen layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def adapted(is_broken):
    model = bert().requires_grad_(False)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query = Adapter(layer.attention.self.query)
    adapters = [p for name, p in model.named_parameters() if ".down." in name or ".up." in name]
    if is_broken:
        model.requires_grad_(False)
        model.classifier.bias.requires_grad_(True)
    return {"model": model, "others": {"optimizers": (torch.optim.AdamW(adapters), None)}}


def optimizer_of_another_model(is_broken):
    model = bert()
    held = (bert() if is_broken else model).parameters()
    return {"model": model, "others": {"optimizers": (torch.optim.AdamW(held, lr=1e-3), None)}}


def checkpointed_below_frozen_embeddings(is_broken):
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": is_broken})
    if is_broken:
        # Recent versions make the inputs require gradients, which is the remedy.
        model.disable_input_require_grads()
    return {"model": model}


def untied(is_broken):
    model = gpt2()
    if is_broken:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return {"model": model, "data": sentences(are_targets=True)}


class OwnLoss(Trainer):
    is_broken = False

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        features = model.bert(**inputs).pooler_output
        if self.is_broken:
            features = features.detach()
        return nn.functional.cross_entropy(model.classifier(model.dropout(features)), labels)


class DetachingLoss(OwnLoss):
    is_broken = True


def detached_encoder(is_broken):
    return {"cls": DetachingLoss if is_broken else OwnLoss}


class LossInEvalMode(Trainer):
    def compute_loss(self, model, *args, **kwargs):
        model.eval()
        return super().compute_loss(model, *args, **kwargs)


def eval_mode(is_broken):
    return {"cls": LossInEvalMode if is_broken else Trainer}


BUGS = {
    adapted: "AdamW.step updated 0 of 4 parameters",
    optimizer_of_another_model: "AdamW.step updated 0 of 41 parameters",
    checkpointed_below_frozen_embeddings: "parameters that AdamW.step holds had no gradient",
    untied: "`transformer.wte.weight` and `lm_head.weight` differ in data",
    detached_encoder: "39 of 41 parameters that AdamW.step holds had no gradient",
    eval_mode: "are in eval mode when Tensor.backward runs",
}


def check(folder, make, is_broken):
    """Return the messages and causes of a run, checked with what its healthy twin showed."""
    learned = TrainCheckCallback(output_dir=folder / "trace", log=False)
    settings = {"num_train_epochs": 2, "eval_strategy": "no"}
    trainer(folder, learned, **settings, **make(False)).train()
    rules = learn(folder / "rules.json", folder / "trace")
    callback = TrainCheckCallback(invariants=rules, every_n_steps=1, log=False)
    trainer(folder, callback, **settings, **make(is_broken)).train()
    assert callback.report.problems == ()
    assert callback.report.num_steps == 24
    return callback.report


@pytest.mark.parametrize(("make", "message"), BUGS.items())
def test_a_bug_is_reported_in_its_first_step(tmp_path, make, message):
    report = check(tmp_path, make, is_broken=True)

    assert any(message in diagnosis.message for diagnosis in report.diagnoses)
    assert min(violation.step for violation in report.violations) == 0
    assert all(Path(__file__).name in violation.source for violation in report.violations)


@pytest.mark.parametrize("make", BUGS)
def test_its_healthy_twin_is_silent(tmp_path, make):
    assert check(tmp_path, make, is_broken=False).diagnoses == ()
