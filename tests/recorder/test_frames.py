"""What frames hold: the values of variables, when calls begin and end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.recorder.recording import NAMES, batches, make_model, record, train_with
from traincheck_plugin.events import ATTRIBUTES
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.vocabulary import GradState


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
