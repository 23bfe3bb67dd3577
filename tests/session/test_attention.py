"""With the default budget every step is watched for a while when something begins or goes wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.watched import ATTENTION, OPTIONS, watched_steps
from traincheck_plugin import watch

NUM_STEPS = 40


@pytest.fixture
def watched(monkeypatch):
    return watched_steps(monkeypatch)


def train(before_step=lambda step, monitor: None, *, forgets_at=(), clears_last=False):
    """Train so that no step but the attentive ones fits in the budget; return the monitor."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(model.parameters())
    with watch(model, optimizer, **OPTIONS) as monitor:
        for step in range(NUM_STEPS):
            before_step(step, monitor)
            if not clears_last and step not in forgets_at:
                optimizer.zero_grad()
            x = torch.randn(16, 8)
            nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
            if clears_last:
                optimizer.zero_grad()
    return monitor


def first_steps(start):
    return list(range(start, start + ATTENTION))


def test_after_the_start(watched):
    monitor = train()
    assert watched == first_steps(0)
    assert monitor.report.num_steps == NUM_STEPS


@pytest.mark.parametrize("clears_last", [False, True])
@pytest.mark.parametrize("step", [0, 5, 21, 1000])
def test_after_a_checkpoint_is_loaded_between_steps(watched, step, clears_last):
    def resume(present, monitor):
        if present == 20:
            assert monitor.state_dict() == {"step": 20}
            monitor.load_state_dict({"step": step})
            assert monitor.state_dict() == {"step": step}

    monitor = train(resume, clears_last=clears_last)
    assert watched == [*first_steps(0), *first_steps(step)]
    assert monitor.report.num_steps == NUM_STEPS
    assert monitor.state_dict() == {"step": step + NUM_STEPS - 20}


def test_after_a_checkpoint_is_loaded_before_the_first_step(watched):
    train(lambda step, monitor: step or monitor.load_state_dict({"step": 1000}))
    assert watched == first_steps(1000)


# In the last attentive step too: what is found in it keeps the next ones from being left out.
@pytest.mark.parametrize("step", [2, ATTENTION - 1])
def test_after_a_violation(watched, step):
    monitor = train(forgets_at={step})
    assert [violation.step for violation in monitor.report.violations] == [step]
    assert watched == [*range(step + 1), *first_steps(step + 1)]


def test_what_was_looked_at_before_a_rollback_is_over(watched):
    def resume(step, monitor):
        if step == 20:
            monitor.load_state_dict({"step": 1000})
        elif step == 30:
            monitor.load_state_dict({"step": 3})

    train(resume)
    assert watched == [*first_steps(0), *first_steps(1000), *first_steps(3)]
