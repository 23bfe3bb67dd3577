"""What the autograd graph of a loss tells of how it is computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.recorder.recording import CALLS_ONLY, batches, make_model, record
from traincheck_plugin.recorder.loss_graph import MAX_NODES, formula, operations
from traincheck_plugin.recorder.probes import backward
from traincheck_plugin.vocabulary import LAYER

CROSS_ENTROPY = {"nll_loss(log_softmax)", "log_softmax(layer)"}


def _told(loss: Tensor) -> set[str]:
    return set(formula(operations(loss.grad_fn)).split())


@pytest.fixture
def outputs() -> Tensor:
    torch.manual_seed(1)
    output: Tensor = nn.Linear(5, 3)(torch.randn(4, 5))
    return output


TARGET = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda o: functional.cross_entropy(o, TARGET), CROSS_ENTROPY),
        (lambda o: functional.nll_loss(o.log_softmax(1), TARGET), CROSS_ENTROPY),
        (
            lambda o: functional.cross_entropy(o.softmax(1), TARGET),
            {"nll_loss(log_softmax)", "log_softmax(softmax)", "softmax(layer)"},
        ),
        # Shapes and casts do not count.
        (
            lambda o: functional.cross_entropy(o.unsqueeze(0).flatten(0, 1).double(), TARGET),
            CROSS_ENTROPY,
        ),
        (
            lambda o: functional.mse_loss(o, torch.zeros_like(o)),
            {"mse_loss(constant,layer)"},
        ),
        (lambda o: (o - 1).pow(2).mean(), {"mean[2d](pow)", "pow(sub)", "sub(constant,layer)"}),
        # Nor does which elements are taken.
        (
            lambda o: functional.nll_loss(
                o.softmax(1)[torch.tensor([True, False] * 2)][:, :3], TARGET[:2]
            ),
            {"nll_loss(softmax)", "softmax(layer)"},
        ),
        # Nor do numbers.
        (lambda o: (o.exp() * 2 / 3).sum(), {"sum[2d](exp)", "exp(layer)"}),
        (lambda o: (o * torch.ones(3)).sum(), {"sum[2d](mul)", "mul(constant,layer)"}),
        (lambda o: (o.detach() * o).sum(), {"sum[2d](mul)", "mul(constant,layer)"}),
        (lambda o: (o.exp() * o).sum(), {"sum[2d](mul)", "mul(exp,layer)", "exp(layer)"}),
        (
            lambda o: functional.mse_loss(o, torch.zeros_like(o)) - o.abs().sum(),
            {
                *("sub(mse_loss,sum[2d])", "sum[2d](abs)", "abs(layer)"),
                "mse_loss(constant,layer)",
            },
        ),
    ],
)
def test_operations_from_the_loss_to_the_last_layer(
    outputs: Tensor, loss: Callable[[Tensor], Tensor], expected: set[str]
) -> None:
    assert _told(loss(outputs)) == expected


def test_predictions_and_targets_of_other_shapes_are_told() -> None:
    predicted, target = nn.Linear(5, 1)(torch.randn(4, 5)), torch.randn(4)
    assert "mean[1d](pow)" in _told((predicted.squeeze(1) - target).pow(2).mean())
    assert "mean[2d](pow)" in _told((predicted - target).pow(2).mean())


@pytest.mark.parametrize("name", ["mse_loss", "smooth_l1_loss", "huber_loss"])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_compares_each_prediction_with_each_target_is_told(name: str) -> None:
    predicted, target = nn.Linear(5, 1)(torch.randn(4, 5)), torch.randn(4)
    loss = getattr(functional, name)
    plain, broadcast = {f"{name}(constant,layer)"}, {f"{name}(broadcast,constant,layer)"}
    assert _told(loss(predicted, target)) == broadcast
    assert _told(loss(predicted.squeeze(1), target[:, None])) == broadcast
    assert _told(loss(predicted.squeeze(1), target)) == plain
    # One prediction for all, and one target for several predictions of each sample.
    assert _told(loss(predicted.mean(), target)) == {
        *(f"{name}(constant,mean[2d])", "mean[2d](layer)"),
    }
    assert _told(loss(nn.Linear(5, 4)(torch.randn(4, 5)), target)) == plain


@pytest.mark.parametrize(
    "even", [torch.abs, torch.square, lambda d: d * d, lambda d: (d * 2) ** 2, torch.linalg.norm]
)
def test_what_is_subtracted_from_what_counts_where_the_sign_does(
    outputs: Tensor, even: Callable[[Tensor], Tensor]
) -> None:
    target = torch.ones(4, 3)
    difference, turned = outputs - target, target - outputs
    assert _told(even(difference).sum()) == _told(even(turned).sum())
    assert _told(difference.clamp(0).sum()) == {
        *("sum[2d](clamp)", "clamp(sub)", "sub(constant,layer)"),
    }
    assert _told(turned.clamp(0).sum()) == {
        *("sum[2d](clamp)", "clamp(rsub)", "rsub(constant,layer)"),
    }


@pytest.mark.parametrize("weight", [0, 0.0, torch.zeros(())])
def test_a_term_with_a_weight_of_0_is_a_constant(outputs: Tensor, weight: float) -> None:
    loss = functional.cross_entropy(outputs, TARGET) + weight * outputs.exp().sum()
    told = _told(loss)
    if isinstance(weight, Tensor):
        # A tensor on a device must not be read.
        assert told == {"add(mul,nll_loss)", "exp(layer)", *CROSS_ENTROPY} | {
            *("mul(constant,sum[2d])", "sum[2d](exp)"),
        }
    else:
        assert told == {"add(constant,nll_loss)", *CROSS_ENTROPY}


@pytest.mark.parametrize("turned", [False, True])
def test_a_difference_of_each_prediction_to_each_target_is_told(turned: bool) -> None:
    predicted, target = nn.Linear(5, 1)(torch.randn(4, 5)), torch.randn(4)

    def told(first: Tensor, second: Tensor) -> set[str]:
        return _told((second - first if turned else first - second).sum())

    name = "rsub" if turned else "sub"
    broadcast, plain = f"{name}(broadcast,constant,layer)", f"{name}(constant,layer)"
    assert broadcast in told(predicted, target)
    assert broadcast in told(predicted.squeeze(1), target[:, None])
    assert plain in told(predicted.squeeze(1), target)
    # Quantiles, a mean of several, one sample, and pairs that are compared on purpose.
    assert plain in told(nn.Linear(5, 3)(torch.randn(4, 5)), target[:, None])
    assert plain in told(nn.Linear(5, 3)(torch.randn(4, 5)), target[:3])
    assert plain in told(nn.Linear(5, 1)(torch.randn(1, 5)).squeeze(1), target[:1])
    assert "sub(layer,layer)" in told(predicted, predicted.squeeze(1))


def test_a_product_of_each_prediction_with_the_number_of_each_sample_is_told() -> None:
    predicted, weight = nn.Linear(5, 1)(torch.randn(4, 5)).exp(), torch.randn(4)

    def told(first: Tensor, second: Tensor) -> set[str]:
        return _told((first * second).sum())

    broadcast, plain = "mul(broadcast,constant,exp)", "mul(constant,exp)"
    assert broadcast in told(predicted, weight)
    assert broadcast in told(weight[:, None], predicted.squeeze(1))
    assert plain in told(predicted.squeeze(1), weight)
    # Pairs that are chosen on purpose, weights of columns, one sample, and predictions of others.
    assert plain in told(predicted.squeeze(1), torch.randn(4, 4))
    several = nn.Linear(5, 3)(torch.randn(4, 5)).exp()
    assert plain in told(several, torch.randn(3))
    assert plain in told(several, weight[:, None])
    assert plain in told(predicted[:1], weight[:1])
    assert "mul(exp,exp)" in told(predicted, predicted.squeeze(1))


def test_autocast_and_frozen_or_normalising_layers_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    inputs = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert _told(functional.cross_entropy(model(inputs), TARGET)) == CROSS_ENTROPY
    head = nn.Linear(3, 3).requires_grad_(False)
    assert _told(functional.cross_entropy(head(model(inputs)), TARGET)) == CROSS_ENTROPY
    without_bias = nn.Linear(3, 3, bias=False)
    assert _told(functional.cross_entropy(without_bias(model(inputs)), TARGET)) == CROSS_ENTROPY


def test_parameters_in_the_loss_are_layers() -> None:
    weight = nn.Parameter(torch.ones(3))
    assert formula(operations(weight.abs().sum().grad_fn)) == f"sum[1d]({LAYER})"
    assert formula(operations(weight.sum().grad_fn)) == ""


def test_a_parameter_that_is_a_number_ends_no_term(outputs: Tensor) -> None:
    scale, log_variance = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(()))
    assert _told(functional.cross_entropy(scale * outputs, TARGET)) == {
        *("nll_loss(log_softmax)", "log_softmax(mul)", "mul(layer,layer)")
    }
    weighted = torch.exp(-log_variance) * functional.cross_entropy(outputs, TARGET) + log_variance
    assert _told(weighted) == CROSS_ENTROPY | {
        *("add(layer,mul)", "mul(exp,nll_loss)", "exp(neg)", "neg(layer)")
    }


def test_many_terms_tell_what_a_few_do(outputs: Tensor) -> None:
    losses = [functional.cross_entropy(outputs, TARGET) for _ in range(200)]
    several = torch.stack(losses[:3]).mean()
    assert _told(torch.stack(losses).mean()) == _told(several)
    assert len(formula(operations(sum(losses[1:], losses[0]).grad_fn)).split()) < MAX_NODES


def test_compiled_code_tells_nothing(outputs: Tensor) -> None:
    class CompiledFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * 2

    assert formula(operations(CompiledFunction.apply(outputs).sum().grad_fn)) == ""


def test_the_graph_stays_as_it_was(outputs: Tensor) -> None:
    loss = functional.cross_entropy(outputs.softmax(1), TARGET)
    (before,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    formula(operations(loss.grad_fn))
    (after,) = torch.autograd.grad(loss, outputs)
    assert torch.equal(before, after)


def _backwards(train: Callable[[], None]) -> list[str]:
    """Return the formula that each backward tells, "" where it tells none."""
    return [
        next((str(item.value) for item in call.inputs if item.path == "formula"), "")
        for call in record(train, CALLS_ONLY).of_role("backward")
    ]


def test_each_backward_tells_how_its_loss_is_computed() -> None:
    def train() -> None:
        for batch in batches(2):
            (make_model()(batch).mean() / 4).backward()
        output = make_model()(batches(1)[0])
        output.backward(torch.ones_like(output))

    assert _backwards(train) == ["mean[2d](layer)"] * 2 + [""]


def test_formulas_that_never_repeat_are_not_told_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "MAX_TEXTS", 1)

    def train() -> None:
        output = make_model()(batches(1)[0])
        for loss in (output.sum(), output.exp().sum(), output.sum()):
            loss.backward(retain_graph=True)

    assert _backwards(train) == ["sum[2d](layer)", "", "sum[2d](layer)"]
