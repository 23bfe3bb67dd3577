"""Models, optimizers and tensors out of the ordinary: watched as any other, or told by name."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from traincheck_plugin import watch
from traincheck_plugin.cli.check import main

pytestmark = pytest.mark.usefixtures("device")

STEPS = 14


def loss_of(model, x):
    return model(x).float().square().mean()


def loop(model, optimizer, x, between=lambda step: None):
    losses = []
    for step in range(STEPS):
        between(step)
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def with_optimizer(make):
    def train():
        model = mlp()
        return loop(model, make(model), torch.randn(4, 6))

    return train


def compiled(backend):
    def train():
        torch._dynamo.reset()
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return loop(torch.compile(model, backend=backend), optimizer, torch.randn(4, 6))

    return train


def compiled_step():
    torch._dynamo.reset()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step = torch.compile(optimizer.step, backend="eager")
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, torch.ones(4, 6))
        loss.backward()
        step()
        losses.append(loss.item())
    return losses


def sparse_embedding():
    embedding = nn.Embedding(10, 4, sparse=True)
    head = nn.Linear(4, 2)
    model = nn.Sequential(embedding, head)
    sparse = torch.optim.SparseAdam(list(embedding.parameters()), lr=0.1)
    dense = torch.optim.SGD(head.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        for optimizer in (sparse, dense):
            optimizer.zero_grad()
        loss = loss_of(model, torch.randint(10, (5,)))
        loss.backward()
        for optimizer in (sparse, dense):
            optimizer.step()
        losses.append(loss.item())
    return losses


class WithOddTensors(nn.Module):
    """Parameters that are empty, transposed, channels-last, complex, in half precision."""

    def __init__(self):
        super().__init__()
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.transposed = nn.Parameter(torch.randn(6, 4).t())
        self.convolution = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.complex = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.low = nn.Parameter(torch.randn(4, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        self.register_buffer("nothing", None)
        self.scalar = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        y = x @ self.transposed.t() * self.mask + self.empty.sum() * self.scalar
        y = y + (y * self.complex).abs() + self.low
        return y + self.convolution(torch.ones(1, 2, 3, 3)).sum()


def odd_tensors():
    model = WithOddTensors()
    return loop(model, torch.optim.SGD(model.parameters(), lr=1e-3), torch.randn(4, 6))


def tied():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    return loop(model, torch.optim.Adam(model.parameters(), lr=0.01), torch.randn(4, 6))


def added_late():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def between(step):
        if step == 5:
            model.append(nn.Linear(6, 2))
            optimizer.add_param_group({"params": list(model[2].parameters())})

    return loop(model, optimizer, torch.randn(4, 6), between)


def built_on_meta():
    with torch.device("meta"):
        model = mlp()
    model.to_empty(device=torch.get_default_device())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(4, 6))


def lazy():
    model = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d())
    model(torch.randn(4, 6))
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(4, 6))


def parametrized():
    model = mlp()
    nn.utils.parametrizations.spectral_norm(model[0])
    nn.utils.parametrizations.weight_norm(model[2])
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(4, 6))


def checkpointed():
    first, second = nn.Linear(6, 6), nn.Linear(6, 2)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x):
            hidden = torch.utils.checkpoint.checkpoint(self.first, x, use_reentrant=False)
            return self.second(hidden)

    model = Model()
    return loop(model, torch.optim.SGD(model.parameters(), lr=0.01), torch.randn(4, 6))


class CountingSGD(torch.optim.SGD):
    """Overrides both methods and calls the base's, which fires the hooks twice."""

    def step(self, closure=None):
        return super().step(closure)

    def zero_grad(self, set_to_none=False):
        super().zero_grad(set_to_none=set_to_none)


def no_step_or_loss():
    mlp()(torch.ones(2, 6))
    return []


TRAININGS = {
    "compiled, eager": compiled("eager"),
    "compiled, aot_eager": compiled("aot_eager"),
    "compiled, inductor": compiled("inductor"),
    "compiled step": compiled_step,
    "fused": with_optimizer(lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True)),
    "foreach": with_optimizer(lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, foreach=True)),
    "for each tensor": with_optimizer(
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, foreach=False)
    ),
    "rate as a tensor": with_optimizer(
        lambda m: torch.optim.SGD(m.parameters(), lr=torch.tensor(0.01))
    ),
    "super().step": with_optimizer(lambda m: CountingSGD(m.parameters(), lr=0.01)),
    "named parameters": with_optimizer(lambda m: torch.optim.SGD(m.named_parameters(), lr=0.01)),
    "no momentum, weight decay": with_optimizer(
        lambda m: torch.optim.NAdam(m.parameters(), lr=0.01, weight_decay=0.1)
    ),
    "sparse embedding": sparse_embedding,
    "odd tensors": odd_tensors,
    "tied weights": tied,
    "parameters added late": added_late,
    "built on meta": built_on_meta,
    "lazy modules": lazy,
    "parametrized": parametrized,
    "activation checkpointing": checkpointed,
    "no training": no_step_or_loss,
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("collects", [False, True], ids=["checked", "recorded"])
def test_it_is_watched_and_trains_the_same(train, collects, tmp_path):
    if train is TRAININGS["compiled, inductor"] and shutil.which("g++") is None:
        pytest.skip("needs a compiler")
    torch.manual_seed(0)
    expected = train()
    torch.manual_seed(0)
    options = {"invariants": "default", "every_n_steps": 1, "log": False}
    if collects:
        options["output_dir"] = tmp_path / "trace"
    with watch(**options) as monitor:
        losses = train()

    assert losses == expected
    assert [f"{d.message}: {d.cause}" for d in monitor.report.diagnoses] == []
    assert monitor.report.totals.num_errors == 0
    # What cannot be observed is told by name; a failure of our own is not among that.
    assert not any("error" in problem for problem in monitor.report.problems), (
        monitor.report.problems
    )
    if train is compiled_step:
        assert any("no optimizer step was seen" in p for p in monitor.report.problems)
    elif expected:
        assert monitor.report.totals.num_passed >= 4


def test_a_training_without_an_optimizer_is_not_called_healthy(tmp_path, capsys):
    def train():
        model = nn.Linear(4, 1)
        for _ in range(5):
            model(torch.ones(2, 4)).sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None

    options = {"invariants": "default", "every_n_steps": 1, "log": False}
    with watch(**options, output_dir=tmp_path / "trace") as monitor:
        train()
    main(["-f", str(tmp_path / "trace"), "-o", str(tmp_path)])

    live, offline = monitor.report.summary(), capsys.readouterr().out
    assert monitor.report.totals.num_passed > 0
    assert live.startswith("no optimizer step was seen: nothing about training could be judged")
    assert offline.startswith("No optimizer step was seen: nothing about training could be judged")
    for report in (live, offline):
        assert "parameters that a script updates by itself, cannot be observed" in report
    assert "No optimizer step was seen" in monitor.report.html()
