"""Where tensors stand for others, in tracing and in transforms, nothing is recorded."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from tests.recorder.recording import batches, make_model, record
from traincheck_plugin.plan import Plan


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(2):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()


def trace(model: nn.Sequential) -> str:
    # What exports a model often puts another around it, which never ran.
    with torch.no_grad():
        return str(torch.jit.trace(nn.Sequential(*model), batches(1)[0]).code)


def export(model: nn.Sequential) -> str:
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(
        nn.Sequential(*model), (torch.ones(3, 4),), dynamic_shapes=({0: batch},)
    )
    return str(exported.run_decompositions().graph)


def symbolic(model: nn.Sequential) -> str:
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList([Inner()])

        def forward(self, x):
            return self.inner[0](x).relu() + 1

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x) * torch.ones(1)

    return str(torch.fx.symbolic_trace(Outer()).graph)


def make_graph(model: nn.Sequential) -> str:
    make = make_fx(nn.Sequential(*model), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    return str(make(torch.ones(3, 4)).graph)


def with_fake_tensors(model: nn.Sequential) -> str:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return str(nn.Sequential(*model)(torch.ones(3, 4)).sum().shape)


def gradients_of_samples(model: nn.Sequential) -> str:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, sample):
        return functional_call(model, parameters, (sample[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, torch.ones(3, 4))
    return str({name: gradient.tolist() for name, gradient in found.items()})


WAYS = [trace, export, symbolic, make_graph, with_fake_tensors, gradients_of_samples]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_training", [True, False])
def test_nothing_within_is_recorded_or_becomes_part_of_it(way, is_training):
    model = make_model()
    train(model)
    model.train(is_training)
    expected = way(model)
    model = make_model()
    got = []

    def run():
        train(model)
        model.train(is_training)
        got.append(way(model))

    with warnings.catch_warnings():
        # A warning of a tracer means that it saw something of ours.
        warnings.simplefilter("error", torch.jit.TracerWarning)
        recording = record(run, Plan.full())

    assert got == [expected]
    assert recording.problems == []
    assert_entries_are_numbers_and_texts(recording)
    # The tracer of torch.jit runs the model once more, in earnest, to compare.
    num_others = len(recording.of_role("forward")) - 2
    assert num_others <= (1 if way is trace else 0)


def assert_entries_are_numbers_and_texts(recording):
    """Nothing that equals itself only: it would be in a trace once for each time it was seen."""
    shapes = [
        item.shape
        for call in recording.calls
        for item in (*call.inputs, *call.outputs)
        if item.dtype
    ]
    assert all(type(size) is int for shape in shapes for size in shape)
    catalog = recording.windows[0].catalog
    assert all(type(size) is int for one in catalog.variables for size in one.shape)


@pytest.mark.filterwarnings("ignore")
def test_a_parameter_with_an_unknown_size_is_one_variable():
    parts = [torch.ones(2, 3), torch.ones(4, 3)]
    model = nn.Module()
    model.nested = nn.Parameter(torch.nested.nested_tensor(parts, layout=torch.jagged))

    def run():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.step()

    recording = record(run, problems=True)

    assert not any("error" in problem for problem in recording.problems)
    assert_entries_are_numbers_and_texts(recording)


def test_what_is_trained_by_a_transform_is_known():
    model = make_model()
    other = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, other)]

    def run():
        for batch in batches(2):
            parameters = {name: p.detach() for name, p in other.named_parameters()}

            def loss(parameters, batch=batch):
                return functional_call(other, parameters, (batch,)).sum()

            gradients = grad(loss)(parameters)
            for name, parameter in other.named_parameters():
                parameter.grad = gradients[name]
            model(batch).sum().backward()
            for optimizer in optimizers:
                optimizer.step()

    recording = record(run)

    last = recording.of_role("step")[-1]
    rows = recording.rows(recording.frames(last, "parameter")["begin"])
    assert rows["0.weight"]["in_model"]
    assert rows["0.weight"]["ran"] >= 0


def test_a_forward_in_a_transform_ends_the_batch_before_it():
    first, second = make_model(), make_model()

    def train_one(model, forward):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in batches(2):
            forward(batch).sum().backward()
            optimizer.step()
            for parameter in model.parameters():
                parameter.grad = None
        return optimizer

    def run():
        optimizers = [train_one(first, first)]
        with torch.no_grad():
            vmap(first)(batches(1)[0])
        optimizers.append(train_one(second, vmap(second)))

    recording = record(run)

    windows = [window for window in recording.roles_by_window("construct") if "step" in window]
    assert windows == ["forward backward step"] * 2 + ["backward step"] * 2
