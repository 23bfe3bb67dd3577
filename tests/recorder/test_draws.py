"""Where random draws go: what a loss tells of them, and what following them keeps alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import followed
from traincheck_plugin.recorder.draws import MAX_DRAWS, Draws

EVERYTHING = Plan(functions=None, attributes={})
DATA = torch.linspace(-1, 1, 32).reshape(4, 8)
LABELS = torch.tensor([0, 1, 1, 0])


def told(*losses, plan=EVERYTHING):
    """Return what is told of draws with each loss that one of *losses* computes."""

    def train():
        for loss in losses:
            loss().backward()

    calls = record(train, plan).of_role("backward")
    return [next((i.value for i in call.inputs if i.path == "draws"), "") for call in calls]


def denoising(model, *, again=False):
    noise = torch.randn_like(DATA)
    target = torch.randn_like(DATA) if again else noise
    return nn.functional.mse_loss(model(DATA + 0.1 * noise).sum(1), target[:, 0])


def test_a_draw_goes_where_it_meets_other_tensors():
    model = nn.Linear(8, 4)
    assert told(
        lambda: denoising(model), lambda: denoising(model, again=True), lambda: model(DATA).sum()
    ) == [
        "randn_like>add:float2,mse_loss:float1",
        "randn_like>add:float2 randn_like>mse_loss:float1",
        "",
    ]


def test_what_is_computed_of_draws_alone_is_of_these_draws():
    model = nn.Linear(8, 4)

    def masked():
        mask = (torch.rand(4, 8) < 0.5).to(torch.float64).float()
        return model(DATA * mask).sum()

    def permuted():
        order = torch.rand(4).argsort()
        mixed, labels = DATA[order], LABELS[order]
        return nn.functional.cross_entropy(model(mixed).reshape(4, -1)[:, :2], labels)

    def in_both():
        first, second = torch.rand(4, 8), torch.randn(4, 8)
        return model(DATA + torch.stack([first, second]).sum(0)).sum()

    found = told(masked, permuted, in_both)
    assert found == [
        "rand>mul:float2",
        "rand>getitem:float2,getitem:int1",
        "rand>add:float2 randn>add:float2",
    ]


def test_draws_in_place_are_draws_and_parameters_are_none():
    model = nn.Linear(8, 4)

    def loss():
        nn.init.normal_(nn.Linear(8, 8).weight)
        noise = torch.empty(4, 8).uniform_(-1, 1)
        return model(DATA + noise).sum()

    assert told(loss) == ["uniform>add:float2"]


def test_a_draw_that_lasts_is_told_with_each_loss_that_uses_it():
    model = nn.Linear(8, 4)
    order = []

    def first():
        order.append(torch.randperm(4))
        return model(DATA[order[0][:2]]).sum()

    def second():
        return model(DATA[order[0][2:]]).sum() + LABELS[order[0][2:]].sum()

    assert told(first, second, lambda: model(DATA).sum()) == [
        "randperm>getitem:float2",
        "randperm>getitem:float2,getitem:int1",
        "",
    ]


def test_nothing_is_told_where_functions_are_not_recorded_or_hidden():
    model = nn.Linear(8, 4)
    assert told(lambda: denoising(model), plan=LIFECYCLE) == [""]

    def hidden():
        data = DATA.clone().requires_grad_()
        return checkpoint(model, data + torch.rand(4, 8), use_reentrant=True).sum()

    assert told(hidden) == [""]


def test_what_a_backward_computes_anew_is_no_draw():
    model = nn.Linear(8, 4)

    def noisy(data):
        return model(data + torch.rand(4, 8))

    def loss():
        return checkpoint(noisy, DATA.clone().requires_grad_(), use_reentrant=False).sum()

    # The one of the backward would be told with the next loss.
    assert told(loss, lambda: model(DATA).sum()) == ["rand>add:float2", ""]


def test_tensors_are_followed_and_not_kept():
    draws = Draws()
    drawn = torch.rand(3)
    draws.observe(torch.rand, (3,), None, drawn)
    mask = drawn < 0.5
    draws.observe(torch.Tensor.lt, (drawn, 0.5), None, mask)
    gone = weakref.ref(drawn)
    del drawn
    gc.collect()
    assert gone() is None

    draws.observe(torch.mul, (mask, torch.ones(3)), None, None)
    assert draws.take() == "rand>mul:float1"
    assert draws.take() == ""


def test_tensors_that_are_followed_are_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "MAX_TENSORS", 3)
    draws = Draws()
    several = [torch.rand(2) for _ in range(5)]
    for one in several:
        draws.observe(torch.rand, (2,), None, one)
    for one in several:
        draws.observe(torch.add, (one, torch.ones(2)), None, None)
    assert draws.take() == "rand>add:float1"
    del several, one
    fresh = torch.randn(2)
    draws.take()
    draws.observe(torch.randn, (2,), None, fresh)
    draws.observe(torch.add, (), {"input": fresh, "other": torch.ones(2, 2)}, None)
    assert draws.take() == "randn>add:float2"


def test_of_what_is_made_of_many_draws_nothing_is_told():
    draws = Draws()
    several = [torch.rand(2) for _ in range(MAX_DRAWS + 1)]
    for one in several:
        draws.observe(torch.rand, (2,), None, one)
    stacked = torch.stack(several)
    draws.observe(torch.stack, (several,), None, stacked)
    draws.observe(torch.add, (stacked, torch.ones(2)), None, None)
    assert draws.take() == ""
