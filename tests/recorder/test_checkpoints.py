"""What saving and loading checkpoints tells."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tests.recorder.recording import batches, make_model, record


def test_checkpoints_are_recorded_once_with_what_a_load_changes(tmp_path):
    def train():
        first, second = make_model(0), make_model(1)
        second(batches(1)[0])
        torch.save(first.state_dict(), tmp_path / "model.pt")
        second.load_state_dict(torch.load(tmp_path / "model.pt"))
        second(batches(1)[0])

    recording = record(train)

    calls = recording.of_role("checkpoint")
    assert [call.name for call in calls] == [
        "torch.nn.Module.state_dict",
        "torch.save",
        "torch.load",
        "torch.nn.Module.load_state_dict",
    ]
    assert {call.context.stage for call in calls} == {"checkpointing"}
    assert recording.of_role("forward")[-1].context.stage == "training"
    assert recording.changed(calls[-1], "data") == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert recording.changed(calls[1], "data") == []


@pytest.mark.parametrize(
    ("state", "strict", "expected"),
    [
        (lambda model: model.state_dict(), True, "all"),
        (lambda model: {"0.weight": model[0].weight, "more": model[0].bias}, False, "some"),
        (lambda model: {f"model.{k}": v for k, v in model.state_dict().items()}, False, "none"),
    ],
)
def test_a_load_tells_how_much_of_the_module_it_loaded(state, strict, expected):
    recording = record(lambda: make_model(1).load_state_dict(state(make_model(0)), strict=strict))
    (load,) = [c for c in recording.of_role("checkpoint") if c.name.endswith("load_state_dict")]
    assert [(item.path, item.value) for item in load.outputs] == [("loaded", expected)]


@pytest.mark.parametrize(
    ("kept", "options", "is_own"),
    [
        (lambda model: model.state_dict(), {}, True),
        (lambda model: copy.deepcopy(model.state_dict()), {}, False),
        (lambda model: {**model.state_dict(), "more": torch.ones(2)}, {"strict": False}, True),
        (lambda model: {**model.state_dict(), "0.bias": torch.ones(8)}, {}, False),
        # To make tensors one's own is more than to copy what they hold.
        (lambda model: model.state_dict(), {"assign": True}, False),
    ],
)
@pytest.mark.parametrize("made_anew", ["", "and nothing else", "and loaded", "and written to"])
@pytest.mark.parametrize("is_saved", [False, True])
def test_a_load_tells_where_it_is_given_memory_of_the_module(
    kept, options, is_own, made_anew, is_saved
):
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        best = kept(model)
        for batch in batches(2):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
        model.eval()
        model(batches(1)[0])
        if is_saved:
            model.state_dict()
        if made_anew:
            best = kept(model)
        if made_anew == "and written to":
            # A checkpoint may be read into it, in place.
            model.state_dict()["0.weight"].fill_(0.5)
        if made_anew == "and loaded":
            # Averaged weights, to be swapped back.
            model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()})
        model.load_state_dict(best, **options)

    (*_, load) = record(train).named("torch.nn.Module.load_state_dict")
    expected = {
        "": ["kept"],
        "and nothing else": ["unchanged"],
        "and loaded": ["loaded"],
        "and written to": [],
    }[made_anew]
    told = [item.value for item in load.outputs if item.path == "own"]
    assert told == (expected if is_own else [])


def tied(is_tied: bool = True):
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    if is_tied:
        model["head"].weight = model["embedding"].weight
    return model


@pytest.mark.parametrize(
    ("state", "is_tied", "expected"),
    [
        (lambda: tied().state_dict(), True, False),
        (lambda: tied().state_dict(), False, True),
        (lambda: through_a_file(tied().state_dict()), False, True),
        (lambda: tied(is_tied=False).state_dict(), False, False),
        # One tensor under two names initialises two parts alike.
        (
            lambda: dict.fromkeys(["embedding.weight", "head.weight"], torch.ones(6, 4)),
            False,
            False,
        ),
        (lambda: {**tied().state_dict(), "head.weight": torch.ones(6, 4)}, False, False),
        (lambda: {**tied().state_dict(), "more": torch.ones(1)}, False, True),
    ],
)
def test_a_load_tells_where_a_tie_is_lost(state, is_tied, expected):
    def train():
        tied(is_tied).load_state_dict(state(), strict=False)

    load = record(train).named("torch.nn.Module.load_state_dict")[-1]
    assert ("untied" in [item.path for item in load.outputs]) == expected


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize(("steps", "expected"), [(0, "none"), (1, "all")])
def test_a_load_tells_whether_there_was_state_of_an_optimizer(steps, expected):
    def train():
        model = make_model()
        optimizer = torch.optim.Adam(model.parameters())
        for batch in batches(steps):
            model(batch).sum().backward()
            optimizer.step()
        torch.optim.Adam(model.parameters()).load_state_dict(optimizer.state_dict())

    load = record(train).named("torch.optim.Optimizer.load_state_dict")[-1]
    assert [(item.path, item.value) for item in load.outputs] == [("loaded", expected)]
