"""Models are found wherever they are, and looking for them takes little time however many come."""

from __future__ import annotations

import copy
import gc
import pickle
import types

import pytest
import torch
from torch import nn

from tests.recorder.recording import batches, make_model, record
from traincheck_plugin.recorder.discovery import Garbage, ModulesAlive
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.problems import Problems


def count_calls(monkeypatch, name):
    calls = []
    function = getattr(gc, name)

    def counted(*args):
        calls.append(name)
        return function(*args)

    monkeypatch.setattr(gc, name, counted)
    return calls


def train(model, num_steps=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(num_steps):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()


class Holder(nn.Module):
    """A model whose parts run, and which is in a cycle."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)
        self.itself = [self]

    def forward(self, x):
        raise NotImplementedError


@pytest.mark.parametrize(
    "make",
    [
        Holder,
        lambda: copy.deepcopy(Holder()),
        lambda: copy.copy(Holder()),
        lambda: pickle.loads(pickle.dumps(Holder())),  # noqa: S301  # made here
    ],
    ids=["built", "deeply copied", "copied", "unpickled"],
)
def test_a_model_that_is_made_later_is_found_without_another_search(make, monkeypatch):
    searches = count_calls(monkeypatch, "get_objects")

    def run():
        train(make_model())
        holder = make()
        optimizer = torch.optim.SGD(holder.parameters(), lr=0.1)
        for batch in batches(2):
            holder.inner(batch).sum().backward()
            optimizer.step()

    recording = record(run)

    last = recording.of_role("step")[-1]
    rows = recording.rows(recording.frames(last, "parameter")["begin"])
    assert set(rows) >= {"inner.weight", "inner.bias"}
    assert all(row["owner"].endswith("Holder#0") for row in rows.values())
    assert len(searches) == 1


def test_a_model_of_before_the_recording_is_found():
    holder = Holder()
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1)

    def run():
        holder.inner(batches(1)[0]).sum().backward()
        optimizer.step()

    recording = record(run)

    rows = recording.rows(recording.frames(recording.of_role("step")[0], "parameter")["begin"])
    assert set(rows) == {"inner.weight", "inner.bias"}


def test_many_models_need_few_collections(monkeypatch):
    collections = count_calls(monkeypatch, "collect")

    def run():
        kept = []
        for _ in range(16):
            kept.append(make_model())
            train(kept[-1])

    record(run)

    assert len(collections) <= 5


def test_garbage_is_collected_each_time_where_models_are_garbage():
    def run():
        for _ in range(4):
            model = make_model()
            model.cycle = [model]
            train(model)

    gc.collect()
    gc.disable()
    try:
        recording = record(run)
    finally:
        gc.enable()

    for call in recording.of_role("step"):
        assert len(recording.frames(call, "parameter")["begin"]) == 4


def test_collections_that_free_nothing_become_rare_and_one_that_does_ends_that(monkeypatch):
    collections = count_calls(monkeypatch, "collect")
    garbage = Garbage()
    kept = nn.Linear(1, 1)
    alive = types.SimpleNamespace(reference=lambda: kept)

    def times(number):
        collections.clear()
        for _ in range(number):
            garbage.collect([alive.reference])
        return len(collections)

    assert times(15) == 4
    alive.reference = lambda: None
    assert times(15 + 8) == 8


def test_references_to_modules_that_are_gone_do_not_add_up():
    alive = ModulesAlive()
    before = len(alive())
    for _ in range(20_000):
        alive.note(nn.Identity())

    assert len(alive._references) < 2 * before + 1001
    alive.forget()
    assert alive._references is None


def test_what_torch_puts_around_a_patch_is_no_problem():
    def original():
        return 1

    owner = types.SimpleNamespace(function=original)
    problems = Problems()
    patches = Patches(problems)
    patches.wrap(owner, "function", lambda function: lambda: function())
    ours = owner.function
    owner.function = lambda: ours()
    patches.undo()

    assert problems.texts == []
    assert owner.function() == 1
