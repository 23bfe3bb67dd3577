"""In which order modules run, and those that run where they do not belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.recorder.recording import Recording, batches, make_model, record


def _at_steps(recording: Recording, attribute: str) -> list[dict[str, Any]]:
    """Return what *attribute* of each parameter was when each step began."""
    found = []
    for step in recording.of_role("step"):
        rows = recording.rows(recording.frames(step, "parameter")["begin"])
        found.append({name: row[attribute] for name, row in rows.items()})
    return found


class Late(nn.Module):
    """Runs its modules in another order than that of their registration."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 1)
        self.first = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.quiet = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            x = x + self.quiet(x)
        return self.last(self.first(x))


def _train(model, optimizer, forward=None, steps=2):
    for x in batches(steps):
        optimizer.zero_grad()
        (forward or model)(x).sum().backward()
        optimizer.step()


def test_parameters_tell_when_their_module_ran():
    model = Late()
    recording = record(lambda: _train(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    for ran in _at_steps(recording, "ran"):
        # The root itself has no parameters, so it has no row.
        assert ran["first.weight"] == ran["first.bias"] == 0
        assert ran["last.weight"] == 1
        assert ran["unused.weight"] == -1
        assert ran["quiet.weight"] == -2


def test_what_ran_before_an_optimizer_was_made_does_not_lead_to_its_steps():
    model = Late()
    head = nn.Linear(1, 1)

    def train():
        _train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
        second = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
        _train(head, second, lambda x: head(x[:, :1]), steps=1)

    first, last = _at_steps(record(train), "ran")
    assert first["last.weight"] == 1
    assert last["last.weight"] == -1
    assert last["weight"] == 0


def test_what_a_checkpoint_runs_again_ran_with_gradients():
    model = make_model()

    def forward(x):
        x = x.requires_grad_()
        return model[2](checkpoint(model[0], x, use_reentrant=True))

    recording = record(lambda: _train(model, torch.optim.SGD(model.parameters(), lr=0.1), forward))
    for ran in _at_steps(recording, "ran"):
        assert min(ran.values()) >= 0


def test_each_optimizer_counts_from_its_own_step():
    first, second = nn.Linear(4, 4), nn.Linear(4, 1)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (first, second))

    def train():
        for index, x in enumerate(batches(4)):
            y = first(x) if index == 0 else x
            second(y).sum().backward()
            theirs.step()
            if index == 3:
                ours.step()

    recording = record(train)
    *_, before, last = _at_steps(recording, "ran")
    # The step of the other optimizer is another cycle: the first model did not run in it.
    assert before["weight"] in (-1, 0)
    assert last["weight"] >= 0
    steps = recording.of_role("step")
    frame = recording.frames(steps[2], "parameter")["begin"]
    owners = [recording.windows[0].catalog.variables[int(code)].owner for code in frame.variables]
    ran = dict(zip(owners, frame.columns["ran"].tolist(), strict=True))
    assert ran["torch.nn.Linear#0"] == -1
    assert ran["torch.nn.Linear#1"] == 0


class Hiding(nn.Module):
    def __init__(self, hidden: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.hidden = [hidden]

    def forward(self, x):
        return self.head(self.hidden[0](x))


@pytest.mark.parametrize("is_evaluated_first", [False, True])
def test_a_module_that_runs_where_it_does_not_belong_is_seen(is_evaluated_first):
    model = Hiding(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))

    def train():
        if is_evaluated_first:
            with torch.no_grad():
                model(torch.randn(8, 4))
        _train(model, torch.optim.SGD(model.parameters(), lr=0.1))

    recording = record(train)
    (stray, *_), (held, *_) = (
        [at[name] for at in _at_steps(recording, "optimizer")] for name in ("0.weight", "head.bias")
    )
    assert stray == -1
    assert held >= 0
    assert [at["0.weight"] for at in _at_steps(recording, "in_model")] == [False, False]
    assert [at["0.weight"] for at in _at_steps(recording, "grad")] == [2, 2]
    assert [at["head.bias"] for at in _at_steps(recording, "in_model")] == [True, True]


def test_a_hidden_module_that_does_not_train_is_left_alone():
    hidden = nn.Linear(4, 4).requires_grad_(False)
    model = Hiding(hidden)
    recording = record(lambda: _train(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    assert set(_at_steps(recording, "ran")[0]) == {"head.weight", "head.bias"}


def test_parts_that_are_added_later_belong():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        _train(model, optimizer)
        model[1] = nn.Linear(8, 8)
        _train(model, optimizer)

    recording = record(train)
    assert _at_steps(recording, "in_model")[-1]["1.weight"] is True


def test_modules_made_in_every_forward_are_looked_at_only_so_often():
    class Making(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            for _ in range(50):
                x = nn.Linear(4, 4)(x)
            return self.head(x)

    model = Making()
    recording = record(lambda: _train(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=3))
    assert len(recording.of_role("step")) == 3
