"""Watching changes no number and leaves nothing behind, however training ends."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from traincheck_transformers import TrainCheckCallback
from transformers import (
    EarlyStoppingCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.transformers_adapter.leaks import installed
from tests.transformers_adapter.training import arguments, bert, gpt2, sentences, t5, trainer
from traincheck_plugin.trace.reader import open_run

CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)


def train(folder, *callbacks, **changes):
    """Return all numbers of a run: its logs, weights, and what random numbers would come next."""
    random.seed(0)
    np.random.seed(0)
    run = trainer(folder, *callbacks, **changes)
    run.train()
    logs = [
        {
            name: value
            for name, value in entry.items()
            if not name.startswith("traincheck/") and not name.endswith(("runtime", "_per_second"))
        }
        for entry in run.state.log_history
    ]
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    return logs, weights, (random.getstate(), np.random.rand(), torch.rand(3).tolist())


VARIANTS = {
    "simple": {},
    "uneven accumulation": {"gradient_accumulation_steps": 5, "num_train_epochs": 2},
    "bf16": {"bf16": True},
    "best model": {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "num_train_epochs": 2,
    },
    "sparse logs": {"logging_steps": 5, "max_steps": 7},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("is_tracing", [True, False])
def test_the_numbers_are_bit_identical(tmp_path, rules, changes, is_tracing):
    expected = train(tmp_path / "plain", **changes)
    callback = (
        TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
        if is_tracing
        else TrainCheckCallback(invariants=rules)
    )

    logs, weights, chance = train(tmp_path / "watched", callback, **changes)

    assert callback.report.num_steps > 0
    assert callback.report.problems == ()
    assert (logs, chance) == (expected[0], expected[2])
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())


class Raising(Trainer):
    """Fails in the third batch."""

    error: BaseException = ValueError("lost")
    batches = 0

    def compute_loss(self, *args, **kwargs):
        self.batches += 1
        if self.batches == 3:
            raise self.error
        return super().compute_loss(*args, **kwargs)


class Interrupted(Raising):
    error = KeyboardInterrupt()


class RaisingLog(Trainer):
    def log(self, *args, **kwargs):
        super().log(*args, **kwargs)
        raise ValueError("lost")


class RaisingEvaluation(Trainer):
    def prediction_step(self, *args, **kwargs):
        raise ValueError("lost")


class RaisingEnd(Trainer):
    def _load_best_model(self):
        raise ValueError("lost")


class RaisingOn(TrainerCallback):
    def __init__(self, event):
        setattr(self, event, self.fail)

    def fail(self, *args, **kwargs):
        raise ValueError("lost")


class Look(TrainerCallback):
    """Looks while training goes on."""

    def __init__(self):
        self.trainer = None
        self.seen = set()

    def on_step_begin(self, *args, **kwargs):
        self.seen |= installed(self.trainer)[0]


def compare(folder, **changes):
    """Return what was installed before, meanwhile and after a run, and what it raised."""
    callback, look = TrainCheckCallback(output_dir=folder / "trace", log=False), Look()
    others = changes.pop("callbacks", ())
    # What torch and the Trainer set up on first use is not ours.
    trainer(folder).train()
    run = look.trainer = trainer(folder, callback, look, *others, **changes)
    before = installed(run)
    # Kept: what it refers to must not be what is waited for.
    raised = None
    try:
        run.train()
    except BaseException as error:  # noqa: BLE001
        raised = error
    assert installed(run) == before
    assert before[0] == set()
    return look.seen, raised


def test_nothing_is_left_behind(tmp_path):
    seen, raised = compare(tmp_path, eval_strategy="epoch")

    assert raised is None
    assert {"Trainer()._run_epoch", "CallbackHandler().call_event"} <= seen
    assert {
        "torch.nn.modules.module.Module.eval",
        "torch.optim.optimizer.Optimizer.zero_grad",
    } <= seen
    assert open_run(str(tmp_path / "trace")).ranks[0].end.outcome.how == "finished"


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"cls": Raising}, "ValueError: lost"),
        ({"cls": Interrupted}, "KeyboardInterrupt"),
        ({"cls": RaisingLog}, "ValueError: lost"),
        ({"cls": RaisingEvaluation, "eval_strategy": "epoch"}, "ValueError: lost"),
        ({"cls": RaisingEvaluation, "eval_on_start": True}, "ValueError: lost"),
        (
            {
                "cls": RaisingEnd,
                "load_best_model_at_end": True,
                "eval_strategy": "epoch",
                "save_strategy": "epoch",
            },
            "ValueError: lost",
        ),
        ({"callbacks": [RaisingOn("on_epoch_begin")]}, "ValueError: lost"),
        ({"callbacks": [RaisingOn("on_pre_optimizer_step")]}, "ValueError: lost"),
        ({"callbacks": [RaisingOn("on_step_end")]}, "ValueError: lost"),
    ],
)
def test_nothing_is_left_behind_by_an_exception(tmp_path, changes, detail):
    seen, raised = compare(tmp_path, **changes)

    assert raised is not None
    assert seen or "callbacks" in changes or "eval_on_start" in changes
    outcome = open_run(str(tmp_path / "trace")).ranks[0].end.outcome
    assert outcome.how == ("interrupted" if detail == "KeyboardInterrupt" else "exception")
    assert outcome.detail == detail


def test_an_exception_of_another_callback_that_begins_later_is_noticed_when_it_is_let_go(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    # It asks for arguments that are not given.
    run = trainer(tmp_path, callback, EarlyStoppingCallback())

    with pytest.raises(AssertionError):
        run.train()

    assert installed(run)[0] == set()
    assert open_run(str(tmp_path / "trace")).ranks[0].end.outcome.how == "exception"


def test_after_an_exception_the_next_run_is_watched(tmp_path, rules):
    callback = TrainCheckCallback(invariants=rules, log=False)
    run = trainer(tmp_path, callback, cls=Raising)
    with pytest.raises(ValueError, match="lost"):
        run.train()
    assert callback.report.num_steps == 2

    run.train()

    assert callback.report.num_steps == 12
    assert callback.report.problems == ()


def test_what_a_user_put_on_the_trainer_stays(tmp_path, rules):
    run = trainer(tmp_path, TrainCheckCallback(invariants=rules, log=True))
    entries = []
    run.log = lambda logs, *args: entries.append(logs)
    own = run.log

    run.train()

    assert run.log is own
    assert "traincheck/violations" in entries[0]


def test_checkpointed_activations(tmp_path):
    data, changes = sentences(are_targets=True), {CHECKPOINTING: True}
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    expected = train(tmp_path / "plain", model=gpt2(), data=data, **changes)

    logs, weights, chance = train(tmp_path / "w", callback, model=gpt2(), data=data, **changes)

    assert (logs, chance) == (expected[0], expected[2])
    assert all(torch.equal(weights[name], value) for name, value in expected[1].items())


def test_a_seq2seq_trainer_that_generates(tmp_path):
    data = sentences(are_targets=True)

    def run(*callbacks):
        args = Seq2SeqTrainingArguments(
            **{
                **arguments(tmp_path).to_dict(),
                "eval_strategy": "epoch",
                "predict_with_generate": True,
                "generation_max_length": 6,
            }
        )
        one = Seq2SeqTrainer(
            t5(), args, train_dataset=data, eval_dataset=data[:4], callbacks=list(callbacks)
        )
        return one.train().training_loss, one.predict(data[:4]).predictions.tolist()

    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    assert run(callback) == run()
    assert callback.report.num_steps == 12
    assert callback.report.problems == ()


def test_a_callback_can_be_given_as_a_class_and_added_later(tmp_path):
    run = trainer(tmp_path, model=bert(), max_steps=2)
    run.add_callback(TrainCheckCallback)
    callback = run.callback_handler.callbacks[-1]

    run.train()

    assert callback.report.num_steps == 2
    assert callback.report.violations == ()
