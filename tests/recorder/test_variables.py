"""Which variables frames are about: the models that are found, their copies and their names."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.recorder.recording import NAMES, batches, make_model, record, train_with
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.recorder import Selection
from traincheck_plugin.vocabulary import NONE


def test_tied_parameters_have_a_row_for_each_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Linear(4, 4, bias=False)
            self.head = nn.Linear(4, 4, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.embedding(x))

    recording = record(
        train_with(lambda net: torch.optim.SGD(net.parameters(), lr=0.1), model=Tied)
    )

    step = recording.of_role("step")[0]
    rows = recording.rows(recording.frames(step, "parameter")["end"])
    assert list(rows) == ["embedding.weight", "head.weight"]
    one, other = rows.values()
    assert one == other
    assert recording.changed(step, "data") == ["embedding.weight", "head.weight"]


def test_a_replaced_module_leaves_its_parameters_to_the_optimizer():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(2):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
            model[2] = nn.Linear(8, 1)

    recording = record(train)

    before, after = (
        recording.rows(recording.frames(call, "parameter")["end"])
        for call in recording.of_role("step")
    )
    assert list(before) == NAMES
    assert list(after) == [*NAMES, "0.2", "0.3"]
    assert after["0.2"]["owner"] == "torch.optim.SGD#0"
    assert after["0.2"]["in_model"] is False
    assert after["0.2"]["data"] == before["2.weight"]["data"]
    assert after["2.weight"]["optimizer"] == NONE
    assert math.isnan(after["2.weight"]["lr"])


def test_parameters_that_no_model_has_go_by_the_optimizers_names():
    def train():
        weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([("weight", weight), ("bias", bias)], lr=0.1)
        other = torch.optim.SGD([nn.Parameter(torch.ones(3))])
        (weight.sum() + bias.sum()).backward()
        optimizer.step()
        other.step()

    recording = record(train)

    rows = recording.rows(recording.frames(recording.of_role("step")[1], "parameter")["end"])
    assert {name: row["owner"] for name, row in rows.items()} == {
        "weight": "torch.optim.SGD#0",
        "bias": "torch.optim.SGD#0",
        "0.0": "torch.optim.SGD#1",
    }


def test_names_are_the_models_from_the_first_zero_grad_on():
    recording = record(train_with(lambda net: torch.optim.SGD(net.parameters(), lr=0.1)))

    frames = recording.frames(recording.of_role("zero_grad")[0], "parameter")
    assert list(recording.rows(frames["begin"])) == NAMES


def test_models_are_found_in_objects_and_closures():
    class Trainer:
        def __init__(self):
            self.model = make_model()
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

        def clear(self):
            self.optimizer.zero_grad()

    def nested():
        model = make_model()

        def build():
            return torch.optim.SGD(model.parameters(), lr=0.1)

        build().zero_grad()

    def train():
        Trainer().clear()
        nested()

    recording = record(train)

    for clear in recording.of_role("zero_grad"):
        assert list(recording.rows(recording.frames(clear, "parameter")["begin"]))[:4] == NAMES


def test_a_part_called_on_its_own_belongs_to_the_whole():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Linear(4, 2)
            self.decoder = nn.Linear(2, 1)

        def training_step(self, x):
            return self.decoder(self.encoder(x)).sum()

    def train():
        whole = Whole()
        whole.training_step(batches(1)[0]).backward()

    recording = record(train)

    frames = recording.frames(recording.of_role("backward")[0], "parameter")
    assert list(recording.rows(frames["end"])) == [
        "encoder.weight",
        "encoder.bias",
        "decoder.weight",
        "decoder.bias",
    ]


def test_models_to_track_limits_what_is_tracked():
    def train():
        net, other = make_model(0), make_model(1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        batch = batches(1)[0]
        (net(batch) + other(batch)).sum().backward()
        optimizer.step()
        assert net is not other

    everything = record(train)
    only_one = record(train, selection=Selection(model_names=("net",)))

    for recording, number in ((everything, 2), (only_one, 1)):
        step = recording.of_role("step")[0]
        frame = recording.frames(step, "parameter")["end"]
        assert len(frame) == 4 * number
        assert set(recording.rows(frame)) == set(NAMES)


def test_a_name_that_holds_no_model_is_said_once():
    def train():
        net = make_model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for batch in batches(2):
            net(batch).sum().backward()
            optimizer.step()

    recording = record(train, selection=Selection(model_names=("nothing",)), problems=True)

    assert len(recording.problems) == 1
    assert "no variable named nothing" in recording.problems[0]
    frame = recording.frames(recording.of_role("step")[1], "parameter")["end"]
    assert set(recording.rows(frame)) == set(NAMES)


class Twin(nn.Sequential):
    """A class that no other test leaves behind."""


def make_twin():
    return Twin(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))


def average_with(make_average, update, num_steps=4):
    def train():
        model = make_twin()
        average = make_average(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(num_steps):
            model(batch).pow(2).sum().backward()
            optimizer.step()
            update(average, model)

    return train


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model)


def of_the_model_itself(model):
    average = averaged(model)
    average.module = model
    return average


@pytest.mark.parametrize(
    ("make_average", "update", "changes"),
    [
        (copy.deepcopy, lambda average, model: None, False),
        (averaged, lambda average, model: average.update_parameters(model), True),
    ],
    ids=["never", "each step"],
)
def test_copies_of_a_model_are_seen(make_average, update, changes):
    recording = record(average_with(make_average, update))

    steps = recording.of_role("step")
    seen = [recording.rows(recording.copies(step)["begin"]) for step in steps]
    # Under the names of the model, which is tracked alone.
    assert {tuple(rows) for rows in seen} == {tuple(NAMES)}
    assert {row["owner"] for rows in seen for row in rows.values()} == {f"{__name__}.Twin#0"}
    assert (seen[0] != seen[1]) == changes
    assert {v.owner for v in recording.windows[0].catalog.variables if v.kind == "module"} == {
        f"{__name__}.Twin#0"
    }


def test_an_average_that_is_the_model_is_no_copy():
    update = torch.optim.swa_utils.AveragedModel.update_parameters
    for make_average in (of_the_model_itself, lambda model: model):
        recording = record(
            average_with(make_average, update if make_average is of_the_model_itself else print)
        )
        steps = recording.of_role("step")
        assert [recording.copies(step) for step in steps] == [{}] * len(steps)
        assert list(recording.rows(recording.frames(steps[0], "parameter")["begin"])) == NAMES


def test_copies_are_looked_for_only_where_somebody_asks():
    attributes = {**FULL_ATTRIBUTES, "step": FULL_ATTRIBUTES["step"] - {("parameter", "copy")}}
    plan = Plan(functions=frozenset(), attributes=attributes)
    recording = record(average_with(copy.deepcopy, lambda average, model: None), plan=plan)
    assert not any(recording.copies(step) for step in recording.of_role("step"))


def test_a_model_that_was_replaced_is_let_go_of():
    def train():
        for _ in range(2):
            model = make_twin()
            # As frameworks do: only the garbage collector takes it away.
            model.itself = [model]
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for batch in batches(2):
                optimizer.zero_grad()
                model(batch).pow(2).sum().backward()
                optimizer.step()

    recording = record(train)
    steps = recording.of_role("step")
    owners = [
        {
            row["owner"]
            for row in recording.rows(recording.frames(step, "parameter")["begin"]).values()
        }
        for step in steps
    ]
    assert owners == [{f"{__name__}.Twin#0"}] * 2 + [{f"{__name__}.Twin#1"}] * 2
