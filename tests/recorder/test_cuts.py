"""Terms of losses that give no gradients: what is told of them, and what that keeps alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.recorder.recording import LIFECYCLE, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.cuts import MAX_CUTS, Cuts
from traincheck_plugin.vocabulary import NO_CUT

EVERYTHING = Plan(functions=None, attributes={})
DATA = torch.linspace(-1, 1, 32).reshape(4, 8)
LABELS = torch.tensor([0, 1, 1, 0])


def told(loss, plan=EVERYTHING):
    """Return what is told of the terms of a loss."""

    def train():
        loss(nn.Linear(8, 4)).backward()

    *_, call = record(train, plan).of_role("backward")
    return next((i.value for i in call.inputs if i.path == "cuts"), "")


def entropy(model):
    return functional.cross_entropy(model(DATA), LABELS)


def accuracy(model):
    return (model(DATA).argmax(1) == LABELS).float().mean()


def overlap(model):
    masks = (model(DATA).sigmoid() > 0.5).float()
    return 1 - 2 * (masks[:, 0] * LABELS).sum() / (masks[:, 0].sum() + LABELS.sum())


def penalty(model, *, create_graph):
    data = DATA.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(data).sum(), data, create_graph=create_graph)
    return (gradient.norm(dim=1) - 1).pow(2).mean()


def in_place(model):
    loss = entropy(model)
    loss += 0.1 * model(DATA).detach().pow(2).mean()
    return loss / 2


CUT = [
    (lambda model: entropy(model) + 0.1 * (1 - accuracy(model)), "argmax"),
    (lambda model: entropy(model) + overlap(model), "gt"),
    (lambda model: overlap(model) + entropy(model), "gt"),
    (lambda model: (entropy(model) - accuracy(model)).mean() * 0.5, "argmax"),
    (lambda model: entropy(model) + penalty(model, create_graph=False), "grad"),
    (lambda model: entropy(model) + model.weight.data.norm(), "data"),
    (lambda model: (overlap(model) + entropy(model)) + accuracy(model), "argmax gt"),
    (in_place, "detach"),
]
NONE_CUT = [
    entropy,
    lambda model: entropy(model) + model.weight.norm(),
    lambda model: entropy(model) + penalty(model, create_graph=True),
    # A factor, a target and a number are no terms.
    lambda model: entropy(model) * accuracy(model),
    lambda model: entropy(model) / entropy(model).detach() + 1,
    lambda model: (model(DATA).mean() - (1 + 0.9 * model(DATA).detach().mean())).pow(2),
    lambda model: entropy(model) + accuracy(model).item(),
    # What is weighted by something that learns counts for that.
    lambda model: (entropy(model) + accuracy(model)) * model.bias.exp().sum(),
    lambda model: entropy(model) + torch.tensor(0.5),
]


@pytest.mark.parametrize(("loss", "name"), CUT)
def test_the_function_is_told_that_cut_a_term(loss, name):
    assert told(loss) == name


@pytest.mark.parametrize("loss", NONE_CUT)
def test_other_losses_have_no_cut_terms(loss):
    assert told(loss) == NO_CUT


def test_what_is_computed_without_autograd_is_not_cut():
    def frozen(model):
        with torch.no_grad():
            told = model(DATA).pow(2).mean()
        return entropy(model) + told

    assert told(frozen) == NO_CUT


def test_nothing_is_told_where_functions_are_not_recorded():
    assert told(entropy, LIFECYCLE) == ""


def test_losses_are_followed_and_not_kept():
    cuts = Cuts()
    weight = torch.ones((), requires_grad=True)
    cut = weight.detach()
    cuts.observe(torch.Tensor.detach, (weight,), None, cut)
    loss = weight + cut
    cuts.observe(torch.add, (weight, cut), None, loss)
    assert cuts.take(loss) == "detach"
    gone = weakref.ref(loss)
    del loss
    gc.collect()
    assert gone() is None
    assert cuts.take(weight) == NO_CUT


def test_of_what_many_functions_cut_nothing_is_told():
    cuts = Cuts()
    weight = torch.ones((), requires_grad=True)
    several = []
    for function in (torch.gt, torch.lt, torch.eq, torch.argmax, torch.round)[: MAX_CUTS + 1]:
        several.append(torch.zeros(()))
        cuts.observe(function, (weight,), None, several[-1])
    stacked = torch.stack(several).sum()
    cuts.observe(torch.sum, (several,), None, stacked)
    loss = weight + stacked
    cuts.observe(torch.add, (weight, stacked), None, loss)
    assert cuts.take(loss) == NO_CUT
