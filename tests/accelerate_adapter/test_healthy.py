"""Healthy runs raise no report, whichever kind of loop the rules were learned from."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from traincheck_accelerate import watch

import traincheck_plugin
from tests.accelerate_adapter.conftest import forget
from tests.accelerate_adapter.loops import (
    NUM_BATCHES,
    accelerated,
    learned,
    learned_from_accelerated,
    plain,
    report_of,
    watching,
)
from traincheck_plugin.checker.check import check
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.trace.reader import open_run


def assert_silent(report, num_steps):
    assert report.diagnoses == ()
    assert report.problems == ()
    assert report.num_steps == num_steps
    assert report.totals.num_errors == 0
    # All the rules about state speak of this run: silence is no lack of attention.
    assert report.totals.num_passed >= 15


@pytest.mark.parametrize("prepares_inside", [False, True])
def test_what_a_plain_loop_taught_holds(from_plain, prepares_inside):
    assert_silent(report_of(from_plain, prepares_inside=prepares_inside), 30)


@pytest.mark.parametrize("clears_first", [False, True])
def test_what_accelerate_taught_holds_in_a_plain_loop(tmp_path, clears_first):
    path = learned_from_accelerated(tmp_path)
    monitor = traincheck_plugin.watch(invariants=path, every_n_steps=1, log=False)
    plain(lambda: monitor, clears_first=clears_first)
    assert_silent(monitor.report, 30)


def test_what_accumulation_taught_holds(from_accumulating):
    assert_silent(report_of(from_accumulating, accumulate=4), 9)


@pytest.mark.parametrize(("accumulate", "num_steps"), [(3, 12), (4, 9)])
def test_rules_about_state_hold_with_accumulation(from_plain, accumulate, num_steps):
    assert_silent(report_of(from_plain, accumulate=accumulate), num_steps)


@pytest.mark.parametrize(("accumulate", "num_steps"), [(1, 30), (3, 12)])
def test_rules_about_state_hold_with_another_accumulation(from_accumulating, accumulate, num_steps):
    assert_silent(report_of(from_accumulating, accumulate=accumulate), num_steps)


@pytest.mark.parametrize("clears_first", [False, True])
def test_rules_about_state_hold_without_accelerate(from_accumulating, clears_first):
    monitor = traincheck_plugin.watch(invariants=from_accumulating, every_n_steps=1, log=False)
    plain(lambda: monitor, clears_first=clears_first)
    assert_silent(monitor.report, 30)


@pytest.mark.parametrize(("reference", "accumulate"), [("from_plain", 4), ("from_accumulating", 1)])
def test_another_accumulation_is_no_violation(request, reference, accumulate):
    report = report_of(request.getfixturevalue(reference), accumulate=accumulate)
    assert report.diagnoses == ()


def test_bfloat16(from_accumulating):
    assert_silent(report_of(from_accumulating, accumulate=4, mixed_precision="bf16"), 9)


def test_steps_that_a_scaler_skips(from_plain, from_accumulating):
    skipped = []

    def count(accelerator, number):
        skipped.append(accelerator.optimizer_step_was_skipped)

    block, monitors = watching(invariants=[from_plain, from_accumulating], log=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-12)
    accelerated(block, mixed_precision="fp16", scaler=scaler, on_batch=count)

    report = monitors[0].report
    assert 1 <= sum(skipped) <= 4
    assert report.diagnoses == ()
    assert report.problems == ()
    assert report.num_steps == 3 * NUM_BATCHES - sum(skipped)


def test_a_scaler_with_accumulation(from_accumulating):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-12)
    report = report_of(from_accumulating, accumulate=4, mixed_precision="fp16", scaler=scaler)
    assert report.diagnoses == ()
    assert 5 <= report.num_steps < 9


def adversarial(block, epochs=5):
    """Train two networks against each other, with an optimizer each, and one that only runs."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    maker, judge, teacher = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(4, 6).eval()
    makes = torch.optim.Adam(maker.parameters(), lr=0.01)
    judges = torch.optim.SGD(judge.parameters(), lr=0.01)
    loader = DataLoader(torch.randn(40, 4), batch_size=8)
    maker, judge, makes, judges, loader = accelerator.prepare(maker, judge, makes, judges, loader)
    with block(accelerator):
        for _ in range(epochs):
            for noise in loader:
                with torch.no_grad():
                    real = teacher(noise)
                judged = (
                    judge(real).sigmoid().mean() - judge(maker(noise).detach()).sigmoid().mean()
                )
                accelerator.backward(-judged)
                judges.step()
                judges.zero_grad()
                accelerator.backward(-judge(maker(noise)).sigmoid().mean())
                makes.step()
                makes.zero_grad()


def test_several_models_and_optimizers(from_plain, tmp_path):
    adversarial(lambda accelerator: watch(accelerator, output_dir=tmp_path / "trace", log=False))
    own = learned(tmp_path / "trace", tmp_path / "own.json")
    block, monitors = watching(invariants=[own, from_plain], log=False)
    adversarial(block)
    report = monitors[0].report
    assert_silent(report, report.num_steps)
    assert report.num_steps >= 25


def test_what_trains_without_being_prepared(tmp_path):
    def train(watch_plainly):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(size, size + 1) for size in range(4, 10)))
        head = nn.Linear(10, 1)
        optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
        accelerator = Accelerator(cpu=True)
        if watch_plainly:
            block = traincheck_plugin.watch(output_dir=tmp_path / "trace", log=False)
        else:
            model, optimizer = accelerator.prepare(model, optimizer)
            block = watch(accelerator, invariants=path, every_n_steps=1, log=False)
        with block as monitor:
            for _ in range(20):
                optimizer.zero_grad()
                accelerator.backward(head(model(torch.randn(4, 4))).square().mean())
                optimizer.step()
        return monitor.report

    train(watch_plainly=True)
    path = learned(tmp_path / "trace", tmp_path / "invariants.json")
    report = train(watch_plainly=False)
    assert report.diagnoses == ()
    assert report.problems == ()
    assert report.totals.num_passed >= 10


def test_training_with_validation_and_checkpoints(from_plain, from_accumulating, tmp_path):
    def between(accelerator, number):
        if number % NUM_BATCHES == 5:
            accelerator.save_state(str(tmp_path / "checkpoint"))
            (model,) = accelerator._models
            model.eval()
            with torch.no_grad():
                accelerator.gather_for_metrics(model(torch.randn(8, 6)))
            model.train()

    for invariants, accumulate, num_steps in ((from_plain, 1, 30), (from_accumulating, 4, 9)):
        forget()
        report = report_of(invariants, accumulate=accumulate, on_batch=between)
        assert report.diagnoses == ()
        assert report.problems == ()
        assert report.num_steps == num_steps


def facts(result):
    found = [
        (
            outcome.invariant.relation,
            outcome.invariant.params,
            violation.step,
            violation.rank,
            violation.stage,
            violation.message,
            violation.source,
            violation.num_occurrences,
        )
        for outcome in result.outcomes
        for violation in outcome.violations
    ]
    return sorted(found, key=repr)


@pytest.mark.parametrize("bug", ["no_zero_grad", "replaced_model", "model_zero_grad"])
def test_the_live_report_is_that_of_the_trace(from_accumulating, tmp_path, bug):
    trace = tmp_path / "trace"
    block, monitors = watching(invariants=from_accumulating, output_dir=trace, log=False)
    accelerated(block, accumulate=4, bug=bug)

    live = monitors[0].report.result
    offline = check(open_run(trace), load_invariants(from_accumulating))
    assert facts(live) == facts(offline)
    assert facts(live)
    assert [d.message for d in live.diagnoses] == [d.message for d in offline.diagnoses]


def test_the_calls_of_the_framework_are_recorded(tmp_path):
    trace = tmp_path / "trace"
    accelerated(lambda accelerator: watch(accelerator, output_dir=trace, log=False), epochs=1)
    (rank,) = open_run(trace).ranks
    calls = [
        (window.catalog.apis[api].name, window.catalog.sources[source])
        for window in rank.windows()
        for api, source in zip(window.calls.api, window.calls.source, strict=True)
    ]
    backward = [source for name, source in calls if name == "accelerate.Accelerator.backward"]
    assert len(backward) == NUM_BATCHES
    # The line of the user's, not of Accelerate's own code.
    assert all(source.endswith(" in accelerated") for source in backward)
    assert {name for name, _ in calls} >= {
        "accelerate.Accelerator.clip_grad_norm_",
        "torch.Tensor.backward",
        "torch.optim.Adam.step",
    }
