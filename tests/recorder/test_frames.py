"""What frames hold: which variables, under which names, with which values."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.recorder.recording import batches, make_model, record
from traincheck_plugin.events import ATTRIBUTES
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.recorder import Selection
from traincheck_plugin.vocabulary import NONE, GradState

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


def train_with(make_optimizer, num_steps=2, prepare=lambda model: None, model=None):
    def train():
        net = model() if model else make_model()
        prepare(net)
        optimizer = make_optimizer(net)
        for batch in batches(num_steps):
            optimizer.zero_grad()
            net(batch).pow(2).sum().backward()
            optimizer.step()

    return train


def test_a_step_changes_what_it_should():
    recording = record(train_with(lambda net: torch.optim.Adam(net.parameters(), lr=0.1)))

    first, second = recording.of_role("step")
    assert recording.changed(first, "data") == NAMES
    assert recording.changed(first, "grad") == []
    assert recording.changed(second, "data", "slot") == [
        f"{name}.{slot}" for name in NAMES for slot in ("step", "exp_avg", "exp_avg_sq")
    ]
    assert "begin" not in recording.frames(first, "slot")  # there was no state yet
    rows = recording.rows(recording.frames(first, "parameter")["end"])
    assert {row["owner"] for row in rows.values()} == {"torch.nn.Sequential#0"}
    assert {row["lr"] for row in rows.values()} == {0.1}
    assert all(row["in_model"] and row["requires_grad"] for row in rows.values())
    catalog = recording.windows[0].catalog
    assert {catalog.objects[row["optimizer"]] for row in rows.values()} == {"torch.optim.Adam#0"}
    rows = recording.rows(recording.frames(first, "parameter")["begin"])
    assert {catalog.strings[row["grad_dtype"]] for row in rows.values()} == {"torch.float32"}


def test_what_modules_say_of_their_parameters_is_told():
    made = []

    def prepare(net):
        made.append(net)

    def train():
        train_with(lambda net: torch.optim.SGD(net.parameters(), lr=0.1), prepare=prepare)()
        (net,) = made
        net.requires_grad = False
        net[2].requires_grad = True
        net[2].bias.requires_grad_(False)
        net(batches(1)[0]).sum().backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()

    recording = record(train)
    told = [
        {
            name: (row["module_requires_grad"], row["requires_grad"])
            for name, row in recording.rows(recording.frames(step, "parameter")["begin"]).items()
        }
        for step in recording.of_role("step")
    ]
    assert told[:2] == [dict.fromkeys(NAMES, (True, True))] * 2
    assert told[2] == {
        "0.weight": (False, True),
        "0.bias": (False, True),
        "2.weight": (True, True),
        "2.bias": (True, False),
    }


def test_frames_have_the_columns_of_the_plan():
    recording = record(
        train_with(lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    )

    catalog = recording.windows[0].catalog
    for call in recording.calls:
        for frame in recording.windows[call.window].frames_of_call.get(call.number, ()):
            kind = catalog.variables[int(frame.variables[0])].kind
            wanted = {name for k, name in FULL_ATTRIBUTES[call.role] if k == kind}
            wanted -= {"copy", "alike", "shared"}
            if call.role == "step" and frame.phase == "end":
                wanted -= {"data_norm", "grad_norm", "dtype", "grad_dtype", "ran"}
                wanted -= {"module_requires_grad"}
            assert set(frame.columns) - {"alike", "shared"} == wanted
            for name, column in frame.columns.items():
                assert column.dtype == ATTRIBUTES[name]
            assert call.begin < frame.sequence < call.end


def test_backward_and_zero_grad_change_gradients():
    recording = record(train_with(lambda net: torch.optim.SGD(net.parameters(), lr=0.1)))

    first, second = recording.of_role("zero_grad")
    before, after = (recording.frames(second, "parameter")[p] for p in ("begin", "end"))
    assert set(before.columns["grad"]) == {GradState.NON_ZERO}
    assert set(after.columns["grad"]) == {GradState.NULL}
    assert recording.changed(first, "grad") == []
    for backward in recording.of_role("backward"):
        assert recording.changed(backward, "grad") == NAMES
        frame = recording.frames(backward, "parameter")
        assert np.isnan(frame["begin"].columns["grad_norm"]).all()
        assert (frame["end"].columns["grad_norm"] > 0).all()


def test_clearing_to_zeros_is_told_from_none():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(2):
            optimizer.zero_grad(set_to_none=False)
            model(batch).sum().backward()
            optimizer.step()

    recording = record(train)

    frames = recording.frames(recording.of_role("zero_grad")[1], "parameter")
    assert set(frames["end"].columns["grad"]) == {GradState.ZERO}


def test_frozen_parameters_do_not_change():
    def freeze(net):
        net[0].requires_grad_(requires_grad=False)

    recording = record(
        train_with(lambda net: torch.optim.SGD(net.parameters(), lr=0.1), prepare=freeze)
    )

    for step in recording.of_role("step"):
        assert recording.changed(step, "data") == NAMES[2:]
    rows = recording.rows(recording.frames(recording.of_role("step")[0], "parameter")["end"])
    assert [rows[name]["requires_grad"] for name in NAMES] == [False, False, True, True]
    assert [rows[name]["grad"] for name in NAMES] == [0, 0, 2, 2]


def test_with_a_closure_the_step_begins_when_it_returns():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(2):

            def closure(batch=batch):
                optimizer.zero_grad()
                loss = model(batch).sum()
                loss.backward()
                with torch.no_grad():
                    model[0].weight.add_(1)  # the closure's doing, not the step's
                return loss

            optimizer.step(closure)

    recording = record(train)

    for step in recording.of_role("step"):
        frames = recording.frames(step, "parameter")
        assert set(frames["begin"].columns["grad"]) == {GradState.NON_ZERO}
        (backward,) = [c for c in recording.of_role("backward") if c.parent == step.number]
        assert frames["begin"].sequence > backward.end


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


def test_added_groups_are_seen():
    def train():
        model = make_model()
        optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
        for batch in batches(2):
            model(batch).sum().backward()
            optimizer.step()
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.5})
            break
        model(batches(1)[0]).sum().backward()
        optimizer.step()

    recording = record(train)

    first, second = recording.of_role("step")
    assert recording.changed(first, "data") == NAMES[:2]
    assert recording.changed(second, "data") == NAMES
    rows = recording.rows(recording.frames(second, "parameter")["end"])
    assert [row["lr"] for row in rows.values()] == [0.1, 0.1, 0.5, 0.5]
    groups = recording.rows(recording.frames(second, "group")["end"])
    assert groups["1.lr"] == {"owner": "torch.optim.SGD#0", "value": 0.5}


def test_the_calling_optimizer_is_meant_where_two_hold_a_parameter():
    def train():
        model = make_model()
        one = torch.optim.SGD(model.parameters(), lr=0.1)
        two = torch.optim.SGD(model.parameters(), lr=0.2)
        model(batches(1)[0]).sum().backward()
        one.step()
        two.step()

    recording = record(train)

    for number, step in enumerate(recording.of_role("step")):
        rows = recording.rows(recording.frames(step, "parameter")["begin"])
        catalog = recording.windows[0].catalog
        assert {catalog.objects[r["optimizer"]] for r in rows.values()} == {
            f"torch.optim.SGD#{number}"
        }
        assert {row["lr"] for row in rows.values()} == {[0.1, 0.2][number]}


def test_buffers_and_modes_are_framed_at_forwards():
    def model():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def train():
        net = model()
        net(batches(1)[0])
        net.eval()
        net(batches(1)[0])

    recording = record(train)

    training, evaluating = recording.of_role("forward")
    assert recording.changed(training, "data", "buffer") == [
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]
    assert recording.changed(evaluating, "data", "buffer") == []
    (mode,) = recording.of_role("mode")
    assert recording.changed(mode, "value", "module") == ["", "0", "1"]


@pytest.mark.parametrize(
    ("gradient", "state"),
    [
        ([0.0, -0.0], GradState.ZERO),
        ([0.0, 1e-38], GradState.NON_ZERO),
        ([1e30, 0.0], GradState.NON_ZERO),
        ([float("inf"), 0.0], GradState.NON_FINITE),
        ([float("nan"), 0.0], GradState.NON_FINITE),
    ],
)
@pytest.mark.parametrize("role", ["zero_grad", "step"])
def test_states_of_gradients_are_exact(gradient, state, role):
    def train():
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight])
        weight.grad = torch.tensor(gradient)
        getattr(optimizer, role)()

    recording = record(train)

    frames = recording.frames(recording.of_role(role)[0], "parameter")
    (found,) = frames["begin"].columns["grad"].tolist()
    # Only together with the norm is it told whether all values are finite.
    is_told = role == "step" or state != GradState.NON_FINITE
    assert found == state if is_told else found >= GradState.NON_ZERO


def unusual_parameters():
    dense = torch.arange(12.0).reshape(3, 4)
    yield "bfloat16", dense.bfloat16()
    yield "half", dense.half()
    yield "double", dense.double()
    yield "complex", dense.to(torch.complex64)
    yield "empty", torch.empty(0, 3)
    yield "scalar", torch.tensor(1.0)
    yield "transposed", dense.T
    yield "strided", dense[:, ::2]
    yield "channels_last", torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [name for name, _ in unusual_parameters()])
def test_unusual_parameters_are_observed(kind):
    data = dict(unusual_parameters())[kind]

    def train():
        weight = nn.Parameter(data.clone() if kind not in ("transposed", "strided") else data)
        optimizer = torch.optim.SGD([weight], lr=0.5)
        weight.grad = torch.ones_like(weight)
        optimizer.step()

    recording = record(train)

    (step,) = recording.of_role("step")
    assert recording.changed(step, "data") == ([] if kind == "empty" else ["0.0"])
    row = recording.rows(recording.frames(step, "parameter")["begin"])["0.0"]
    assert np.isnan(row["data_norm"]) == (kind != "empty")
    assert row["grad"] == (GradState.ZERO if kind == "empty" else GradState.NON_ZERO)


def test_sparse_gradients_are_observed():
    def train():
        embedding = nn.Embedding(5, 2, sparse=True)
        optimizer = torch.optim.SparseAdam(embedding.parameters())
        embedding(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()

    recording = record(train)

    (backward,) = recording.of_role("backward")
    row = recording.rows(recording.frames(backward, "parameter")["end"])["weight"]
    assert row["grad"] == GradState.NON_ZERO
    assert row["grad_norm"] == pytest.approx(math.sqrt(4 + 4 + 1 + 1))


def test_meta_parameters_are_said_once():
    def train():
        with torch.device("meta"):
            model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters())
        optimizer.zero_grad()
        optimizer.step()
        optimizer.step()

    recording = record(train, problems=True)

    assert recording.problems == ["tensors on the meta device have no values to observe"]


def test_lazy_modules_are_seen_once_they_have_parameters():
    def train():
        model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
        model(batches(1)[0]).sum().backward()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.step()

    recording = record(train)

    frames = recording.frames(recording.of_role("step")[0], "parameter")
    assert list(recording.rows(frames["end"])) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_an_empty_plan_takes_no_frames():
    plan = Plan(functions=frozenset(), attributes={})
    recording = record(train_with(lambda net: torch.optim.SGD(net.parameters())), plan)

    assert not any(window.frames for window in recording.windows)
    assert len(recording.of_role("step")) == 2


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
