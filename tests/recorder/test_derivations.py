"""How that is computed which gradients do not go to, where it meets what they go to."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.recorder.recording import CALLS_ONLY, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import derivations
from traincheck_plugin.recorder.derivations import MAX_OPERATIONS
from traincheck_plugin.vocabulary import NO_DERIVATION

FUNCTIONS = Plan(functions=None, attributes={})
VALUES = torch.arange(12.0).view(3, 4)


def told(step, *, times=1):
    """Return the derivations of the losses that *step* returns for a model."""

    def train():
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(times):
            step(model).backward()
            optimizer.step()
            optimizer.zero_grad()

    calls = record(train, FUNCTIONS).of_role("backward")
    found = [
        next((item.value for item in call.inputs if item.path == "derivations"), None)
        for call in calls
    ]
    assert len(found) == times
    return found


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (lambda model: VALUES, NO_DERIVATION),
        (lambda model: VALUES * 2 + 1, "mse_loss<add,mul"),
        (lambda model: 2 - VALUES * VALUES, "mse_loss<mul,rsub"),
        (lambda model: (VALUES > 3).float().unsqueeze(0).squeeze(0), "mse_loss<gt"),
        (lambda model: (VALUES - VALUES.mean(0)) / VALUES.std(0), "mse_loss<div,mean,std,sub"),
        (lambda model: torch.rand(3, 4).to(torch.float32), "mse_loss<rand"),
        (lambda model: torch.cat([VALUES[:1].exp(), VALUES[1:]]), "mse_loss<exp"),
        (lambda model: VALUES.clone().masked_fill_(VALUES > 3, 0.0), "mse_loss<gt,masked_fill"),
        (lambda model: VALUES.max(dim=1, keepdim=True)[0].expand(3, 4), "mse_loss<max"),
        (
            lambda model: functional.one_hot(VALUES[:, 0].long() % 3, 4) + 0.0,
            "mse_loss<add,mod,one_hot",
        ),
    ],
)
def test_a_target_is_told_by_what_computes_it(target, expected):
    assert told(lambda model: functional.mse_loss(model(VALUES), target(model))) == [expected]


def test_flags_that_are_set_belong_to_an_operation():
    def ordered(**options):
        return told(lambda model: model(VALUES)[VALUES[:, 0].argsort(**options)].sum())

    assert ordered(descending=True) == ["getitem<argsort[descending]"]
    assert ordered(descending=False) == ordered() == ["getitem<argsort"]
    found = told(lambda model: (model(VALUES) * VALUES.mean(dim=0, keepdim=True)).sum())
    assert found == ["mul<mean"]


def test_losses_that_are_modules_and_operators_meet_as_well():
    assert told(lambda model: nn.MSELoss()(model(VALUES), VALUES.exp())) == ["mse_loss<exp"]
    assert told(lambda model: ((model(VALUES) - VALUES.exp()) ** 2).sum()) == ["sub<exp"]
    assert told(lambda model: (VALUES.exp() - model(VALUES)).sum()) == ["sub<exp"]


def test_inputs_and_masks_are_told_in_the_model():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            hidden = self.layer((x - 1) / 3)
            return hidden.masked_fill(x.eq(0), 0.0)

    def train():
        model = Masked()
        model(VALUES).sum().backward()

    [call] = record(train, FUNCTIONS).of_role("backward")
    [found] = [item.value for item in call.inputs if item.path == "derivations"]
    assert found == "linear<div,sub masked_fill<eq"


def test_what_a_model_gives_without_gradients_begins_anew():
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    class Functional(nn.Module):
        def forward(self, x):
            return functional.relu(x.exp())

    def step(model):
        with torch.no_grad():
            target = 0.5 * other(VALUES) + Functional()(VALUES)
        return functional.mse_loss(model(VALUES), target)

    assert told(step) == ["mse_loss<add,mul"]
    assert told(lambda model: functional.mse_loss(model(VALUES), other(VALUES).detach().neg())) == [
        "mse_loss<neg"
    ]


def test_a_loss_that_a_model_computes_is_told_as_such():
    class Stepping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                hidden = x.abs()
            return functional.mse_loss(self.layer(x), hidden.exp() * 2)

    model = Stepping()
    assert told(lambda _: model(VALUES)) == ["within mse_loss<exp,mul"]


def test_one_place_in_the_code_is_one_operation():
    def step(model):
        target = torch.stack([row * 2 for row in VALUES])
        for _ in range(40):
            target = target + 1
        return functional.mse_loss(model(VALUES), target)

    assert told(step) == ["mse_loss<add,mul"]


def test_each_loss_tells_its_own():
    number = 0

    def step(model):
        nonlocal number
        number += 1
        target = VALUES.exp() if number == 2 else VALUES
        return functional.mse_loss(model(VALUES), target)

    assert told(step, times=3) == [NO_DERIVATION, "mse_loss<exp", NO_DERIVATION]


@pytest.mark.parametrize(
    ("several", "name"),
    [
        (
            [lambda x: x + 1, lambda x: 1 + x, lambda x: x.add(1), lambda x: x.clone().add_(1)],
            "add",
        ),
        (
            [lambda x: x * 2, lambda x: 2 * x, lambda x: torch.mul(x, 2), lambda x: x.multiply(2)],
            "mul",
        ),
        ([lambda x: x - 1, lambda x: x.sub(1), lambda x: torch.subtract(x, 1)], "sub"),
        ([lambda x: x / 2, lambda x: x.div(2), lambda x: torch.true_divide(x, 2)], "div"),
        ([lambda x: 1 / (x + 1), lambda x: (x + 1).reciprocal()], "add,reciprocal"),
        ([lambda x: 1 - x, lambda x: torch.rsub(x, 1)], "rsub"),
    ],
)
def test_one_operation_has_one_name(several, name):
    for compute in several:
        found = told(lambda model, c=compute: functional.mse_loss(model(VALUES), c(VALUES)))
        assert found == [f"mse_loss<{name}"]


def _step(target):
    """Return a step whose target is computed by code of that many places."""
    names = {"functional": functional, "VALUES": VALUES}
    code = f"def step(model):\n    return functional.mse_loss(model(VALUES), {target})"
    exec(code, names)  # noqa: S102  # each call has to have a place of its own
    return names["step"]


@pytest.mark.parametrize("number", [1, MAX_OPERATIONS, MAX_OPERATIONS + 1])
def test_of_a_long_derivation_nothing_is_told(number):
    expected = "mse_loss<" + ",".join(["add"] * number)
    found = told(_step("VALUES" + ".add(1)" * number))
    assert found == [expected if number <= MAX_OPERATIONS else NO_DERIVATION]


def test_of_many_nothing_is_told(monkeypatch):
    monkeypatch.setattr(derivations, "MAX_MEETINGS", 2)
    sums = ["VALUES.exp()", "VALUES.exp()) + functional.mse_loss(model(VALUES), VALUES.neg()"]
    sums.append(f"{sums[1]}) + functional.mse_loss(model(VALUES), VALUES.abs()")
    assert [told(_step(one)) for one in sums] == [
        ["mse_loss<exp"],
        ["mse_loss<exp mse_loss<neg"],
        [None],
    ]


def test_where_no_functions_are_observed_nothing_is_told():
    def train():
        nn.Linear(4, 4)(VALUES).sum().backward()

    [call] = record(train, CALLS_ONLY).of_role("backward")
    assert "derivations" not in {item.path for item in call.inputs}


def test_no_tensor_is_kept_alive():
    kept: list[weakref.ref[Tensor]] = []

    def step(model):
        target = VALUES * 3
        kept.append(weakref.ref(target))
        loss = functional.mse_loss(model(VALUES), target)
        del target
        return loss

    def train():
        model = nn.Linear(4, 4)
        step(model).backward()
        gc.collect()
        assert kept[-1]() is None

    record(train, FUNCTIONS)
    assert len(kept) == 1
