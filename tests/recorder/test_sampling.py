"""Evaluations that no watched step leads to are observed all the same, a few times."""

from __future__ import annotations

import pytest
import torch

from tests.recorder.recording import CALLS_ONLY, make_loader, make_model, record
from traincheck_plugin.recorder import Sampling
from traincheck_plugin.recorder.sampling import MAX_ATTENDED, Sampler
from traincheck_plugin.recorder.tape import MAX_BATCHES

NO_BUDGET = Sampling(interval=None, warm_up_steps=2, max_overhead=0.0)
EVALUATION = "data data forward" + " data forward" * (MAX_BATCHES - 2)


def train(num_epochs=2, size=3, held_out=MAX_BATCHES + 4, after_step=lambda model: None):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, other = make_loader(4), make_loader(held_out)
    for _ in range(num_epochs):
        for _, (batch,) in zip(range(size), loader, strict=False):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
            after_step(model)
        with torch.no_grad():
            for (batch,) in other:
                model(batch)


def observed(recording):
    """Return the roles of the calls of the windows that are observed after the first steps."""
    roles = recording.roles_by_window("seed", "construct", "mode")
    told = [r for r, w in zip(roles, recording.windows, strict=True) if w.observed]
    return [one for one in told if one][2:]


@pytest.mark.parametrize(
    "after_step",
    # A framework may release the gradients before it evaluates.
    [lambda model: None, lambda model: model.zero_grad()],
)
def test_an_evaluation_is_observed_for_some_batches(after_step):
    recording = record(lambda: train(1, after_step=after_step), CALLS_ONLY, sampling=NO_BUDGET)
    assert observed(recording) == [EVALUATION]
    assert {c.context.stage for c in recording.of_role("forward")} == {"training", "validation"}
    assert [call.context.step for call in recording.of_role("step")] == [0, 1]


def test_a_loop_that_ends_with_its_loader_is_no_other():
    recording = record(lambda: train(1, size=9), CALLS_ONLY, sampling=NO_BUDGET)
    assert observed(recording) == [EVALUATION]


def test_two_starts_of_a_loader_are_observed_but_of_that_for_training():
    recording = record(lambda: train(5), CALLS_ONLY, sampling=NO_BUDGET)
    assert observed(recording) == [EVALUATION] * 2
    assert [call.context.step for call in recording.of_role("step")] == [0, 1]


def test_loaders_that_are_made_anew_are_observed_a_few_times():
    def evaluate():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(12):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model(next(iter(make_loader(1)))[0])

    recording = record(evaluate, CALLS_ONLY, sampling=NO_BUDGET)
    assert observed(recording).count("data data forward") == MAX_ATTENDED


def test_what_a_step_needs_besides_cuts_it_not_in_two():
    def train_on_both():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for (batch,) in make_loader(6):
            optimizer.zero_grad()
            loss = model(batch).sum()
            (other,) = next(iter(make_loader(1)))
            (loss + model(other).sum()).backward()
            optimizer.step()

    recording = record(train_on_both, CALLS_ONLY, sampling=NO_BUDGET)
    whole = "data zero_grad forward data data forward backward step"
    assert set(observed(recording)) <= {whole}
    assert len(recording.of_role("backward")) >= NO_BUDGET.warm_up_steps


@pytest.mark.parametrize("interval", [1, 4])
def test_an_interval_is_kept(interval):
    sampler = Sampler(Sampling(interval=interval))
    assert not sampler.attend_start()
    assert sampler.observes(0, 0, 0)
    assert sampler.observes(1, 0, 0) == (interval == 1)


def test_what_is_attended_to_is_one_window():
    sampler = Sampler(NO_BUDGET)
    assert [sampler.observes(step, 9 * step, 10 * step) for step in range(3)] == [True, True, False]
    assert sampler.attend_start()
    assert [sampler.observes(3, 30, 40), sampler.observes(3, 40, 50)] == [True, False]
