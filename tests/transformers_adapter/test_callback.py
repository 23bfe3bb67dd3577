"""What the callback reports, and when: live as offline, in the step, in the Trainer's own logs."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
from traincheck_transformers import TrainCheckCallback
from transformers import Trainer, TrainerCallback

from tests.transformers_adapter.leaks import installed
from tests.transformers_adapter.training import sentences, trainer
from traincheck_plugin.checker.check import check
from traincheck_plugin.errors import ConfigError, InvariantError, ViolationError
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.trace.reader import open_run

BROKEN = 4


class Breaking(TrainerCallback):
    """Takes the gradients away before the update, from one step on."""

    def __init__(self, step=BROKEN):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step >= self.step:
            for parameter in model.parameters():
                parameter.grad = None


class Logger(TrainerCallback):
    """Gets what the trackers of `report_to` get, which stand before the callbacks of a user."""

    def __init__(self):
        self.entries = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.entries.append(dict(logs))


def steps_of(trace):
    """Return the numbers of the training steps that a trace holds."""
    (rank,) = open_run(str(trace)).ranks
    return {
        window.catalog.contexts[window.calls.context[row]].step
        for window in rank.windows()
        for row in window.rows_of_name("torch.optim.Optimizer.step")
    }


def facts(result):
    return sorted(
        (
            v.invariant.relation,
            repr(v.invariant.params),
            v.step,
            v.rank,
            v.stage,
            v.message,
            v.source,
        )
        for outcome in result.outcomes
        for v in outcome.violations
    )


def test_live_and_offline_say_the_same(tmp_path, rules):
    trace = tmp_path / "trace"
    callback = TrainCheckCallback(invariants=rules, output_dir=trace)

    trainer(tmp_path, callback, Breaking(), eval_strategy="epoch", num_train_epochs=2).train()

    offline = check(open_run(str(trace)), load_invariants(rules))
    live = facts(callback.report.result)
    assert live == facts(offline)
    assert live
    # What alternates may fail once.
    steps = {violation.step for violation in callback.report.violations}
    assert BROKEN in steps
    assert steps <= {BROKEN, BROKEN + 1}
    assert any(Path(__file__).name in source for *_, source in live)


def test_a_violation_is_told_in_the_log_and_in_the_metrics(tmp_path, rules, caplog):
    caplog.set_level(logging.INFO, logger="traincheck")
    callback, logger = TrainCheckCallback(invariants=rules), Logger()
    run = trainer(tmp_path, callback, Breaking(), eval_strategy="epoch")
    run.callback_handler.callbacks.insert(0, logger)

    result = run.train()

    texts = [record.getMessage() for record in caplog.records if record.name == "traincheck"]
    assert "AdamW.step updated 0 of 41 parameters" in texts[0]
    assert "in 12 steps" in texts[-1]
    for entries in (run.state.log_history, logger.entries):
        steps = [entry for entry in entries if "loss" in entry]
        counts = [entry["traincheck/violations"] for entry in steps]
        assert counts[:BROKEN] == [0.0] * BROKEN
        assert all(counts[BROKEN:])
        assert all(entry["traincheck/overhead"] > 0 for entry in steps)
    # What evaluate() and train() return is the user's.
    others = [entry for entry in run.state.log_history if "loss" not in entry]
    assert len(others) == 2
    assert not [name for entry in (*others, result.metrics) for name in entry if "check" in name]


def test_without_log_nothing_is_said(tmp_path, rules, caplog, capsys):
    callback = TrainCheckCallback(invariants=rules, log=False)
    run = trainer(tmp_path, callback, Breaking())

    run.train()

    assert callback.report.violations
    assert not [record for record in caplog.records if record.name == "traincheck"]
    assert "traincheck" not in "".join(capsys.readouterr())
    assert not [name for entry in run.state.log_history for name in entry if "check" in name]


def test_stop_ends_training_after_the_step(tmp_path, rules):
    callback = TrainCheckCallback(invariants=rules, on_violation="stop", log=False)
    run = trainer(tmp_path, callback, Breaking())

    run.train()

    assert run.state.global_step == BROKEN + 1
    assert callback.report.violations
    run.remove_callback(Breaking)
    run.train()
    assert run.state.global_step == 12
    assert callback.report.violations == ()


def test_raise_leaves_train_in_the_step(tmp_path, rules):
    callback = TrainCheckCallback(invariants=rules, on_violation="raise", log=False)
    run = trainer(tmp_path, callback, Breaking())

    with pytest.raises(ViolationError, match="updated 0 of 41") as caught:
        run.train()

    assert caught.value is not None
    # As soon as the step is over: whether the trainer has counted it by then is its business.
    assert run.state.global_step in (BROKEN, BROKEN + 1)
    assert installed(run)[0] == set()


def test_a_function_gets_the_diagnosis(tmp_path, rules):
    seen = []
    callback = TrainCheckCallback(invariants=rules, on_violation=seen.append, log=False)
    trainer(tmp_path, callback, Breaking()).train()
    assert seen[0].message == "AdamW.step updated 0 of 41 parameters"
    assert [diagnosis.message for diagnosis in callback.report.diagnoses]


def test_what_makes_no_sense_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="expected on_violation to be"):
        TrainCheckCallback(on_violation="shout")
    run = trainer(tmp_path, TrainCheckCallback(invariants=tmp_path / "absent.json"))
    with pytest.raises(InvariantError, match=r"absent\.json"):
        run.train()
    assert run.state.global_step == 0
    assert installed(run)[0] == set()


def test_switched_off_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINCHECK_DISABLE", "1")
    callback = TrainCheckCallback(output_dir=tmp_path / "trace")
    run = trainer(tmp_path, callback, max_steps=2)
    run.train()
    assert not (tmp_path / "trace").exists()
    assert callback.report.num_steps == 0


def test_each_call_of_train_is_a_run_of_its_own(tmp_path):
    callback = TrainCheckCallback(output_dir=tmp_path / "trace", log=False)
    run = trainer(tmp_path, callback, max_steps=3)
    run.evaluate()
    run.train()
    run.predict(sentences()[:4])
    run.train()

    assert callback.report.num_steps == 3
    assert steps_of(tmp_path / "trace") == steps_of(tmp_path / "trace-2") == {0, 1, 2}


@pytest.mark.parametrize("restores", [False, True])
@pytest.mark.parametrize("was_watched", [False, True])
def test_a_resumed_run_counts_on(tmp_path, restores, was_watched):
    saving = {"save_strategy": "steps", "save_steps": 5}
    first = TrainCheckCallback(output_dir=tmp_path / "first", log=False)
    trainer(tmp_path, *([first] if was_watched else []), max_steps=5, **saving).train()
    resumed = TrainCheckCallback(output_dir=tmp_path / "second", log=False)
    run = trainer(
        tmp_path, resumed, restore_callback_states_from_checkpoint=restores, max_steps=9, **saving
    )

    run.train(resume_from_checkpoint=True)

    assert run.state.global_step == 9
    assert resumed.report.num_steps == 4
    assert resumed.report.problems == ()
    assert steps_of(tmp_path / "second") == {5, 6, 7, 8}


@pytest.mark.parametrize("restores", [False, True])
def test_a_watched_run_resumes_without_the_callback(tmp_path, restores):
    saving = {"save_strategy": "steps", "save_steps": 5}
    callback = TrainCheckCallback(output_dir=tmp_path / "first", log=False)
    trainer(tmp_path, callback, max_steps=5, **saving).train()
    run = trainer(tmp_path, restore_callback_states_from_checkpoint=restores, max_steps=7, **saving)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 7


class OutOfMemory(Trainer):
    """Has memory for two samples."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        if len(inputs["labels"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_loop_that_starts_again_with_smaller_batches(tmp_path, rules):
    callback = TrainCheckCallback(invariants=rules, output_dir=tmp_path / "trace", log=False)
    run = trainer(tmp_path, callback, cls=OutOfMemory, auto_find_batch_size=True)

    run.train()

    assert run.state.global_step == callback.report.num_steps == 24
    assert callback.report.violations == ()
    assert callback.report.problems == ()
    ends = [open_run(str(path)).ranks[0].end.outcome.how for path in tmp_path.glob("trace*")]
    assert sorted(ends) == ["exception", "exception", "finished"]
    assert installed(run)[0] == set()


def test_it_can_be_pickled_as_searches_over_hyperparameters_do(rules):
    callback = pickle.loads(pickle.dumps(TrainCheckCallback(invariants=rules)))  # noqa: S301
    assert callback.report.violations == ()
