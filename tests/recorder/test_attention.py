"""What an autograd graph tells of attention: what is hidden, and what is summed up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from traincheck_plugin.recorder import attention as attention_module
from traincheck_plugin.recorder.operation_settings import nodes_of, settings
from traincheck_plugin.recorder.padding import Padding

LENGTH = 5
SHOWN = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
PADDING = torch.tensor([[False] * 3 + [True] * 2, [False] * 4 + [True]])


def _told(result: Tensor, name: str, padded: dict[int, Padding] | None = None) -> list[str]:
    nodes = nodes_of(result.sum().grad_fn) or []
    told = [item.partition("=") for item in settings(nodes, lambda: padded or {}).split()]
    return [value for key, _, value in told if key == name]


@pytest.fixture
def values() -> Tensor:
    return torch.randn(2, 4, LENGTH, 8, requires_grad=True).sin()


def _scores(x: Tensor) -> Tensor:
    return x @ x.transpose(-1, -2) / 3


def _blocks() -> Tensor:
    same = torch.arange(LENGTH) // 2
    return same[:, None] != same


@pytest.mark.parametrize(
    ("hide", "expected"),
    [
        (lambda s: s.masked_fill(~SHOWN, -1e9), "later"),
        (lambda s: s.masked_fill(~SHOWN.T, -1e9), "earlier"),
        (lambda s: s.masked_fill(SHOWN.tril(-1), -1e9), "earlier"),
        (lambda s: s.masked_fill(_blocks(), -1e9), "some"),
        (lambda s: s.masked_fill(PADDING[:, None, None], -1e9), "keys"),
        (lambda s: torch.where(SHOWN, s, torch.tensor(-1e9)), "later"),
        (lambda s: torch.where(~SHOWN, torch.tensor(-1e9), s), "later"),
        # What several hide together is what matters.
        (lambda s: s.masked_fill(~SHOWN, -1e9).masked_fill(PADDING[:, None, None], -1e9), "later"),
        (lambda s: s + torch.zeros(5, 5).masked_fill(~SHOWN, -1e9), "later"),
        # A bias of distances hides nothing.
        (lambda s: s + -(torch.arange(5.0)[:, None] - torch.arange(5.0)).abs(), "keys"),
        # With the padding of all samples.
        (lambda s: s.masked_fill(~SHOWN | PADDING[0], -1e9), "later"),
    ],
)
def test_what_a_mask_by_hand_hides_is_told(
    values: Tensor, hide: Callable[[Tensor], Tensor], expected: str
) -> None:
    result = hide(_scores(values)).softmax(-1) @ values
    assert _told(result, "self_attention.hides") == [expected]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"is_causal": True}, ["later"]),
        ({"attn_mask": SHOWN}, ["later"]),
        ({"attn_mask": SHOWN.T}, ["earlier"]),
        ({"attn_mask": ~PADDING[:, None, None]}, ["keys"]),
        ({"attn_mask": torch.zeros(5, 5).masked_fill(~SHOWN, float("-inf"))}, ["later"]),
        # A bias of distances hides nothing.
        ({"attn_mask": -(torch.arange(5.0)[:, None] - torch.arange(5.0)).abs()}, ["keys"]),
        ({}, []),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_the_mask_of_fused_attention_hides_is_told(
    values: Tensor, dropout: float, arguments: dict[str, object], expected: list[str]
) -> None:
    result = functional.scaled_dot_product_attention(
        values, values, values, dropout_p=dropout, **arguments
    )
    assert _told(result, "self_attention.hides") == expected


def _expected(at_end: Tensor, other: Tensor, is_padded: Sequence[bool]) -> list[str]:
    """What is told of padding, by a mask that hides the ends of two samples, or does not."""
    ends = [(end, far) for end, far, some in zip(at_end, other, is_padded, strict=True) if some]
    if ends and all(end for end, _ in ends):
        return ["hidden"]
    return ["shown"] if ends and all(far and not end for end, far in ends) else []


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        (PADDING, ["last"]),
        (~PADDING, ["first"]),
        (PADDING.flip(1), ["first"]),
        (torch.stack([PADDING[0], PADDING[0].flip(0)]), ["first", "last"]),
        # Of what is not padded, all is hidden by a mask that is inverted.
        (torch.stack([~PADDING[0], torch.ones(LENGTH, dtype=torch.bool)]), ["first"]),
        (torch.zeros(2, LENGTH, dtype=torch.bool), []),
        # In the middle, as words that are left out at random.
        (torch.tensor([[False, True, False, True, False]] * 2), []),
    ],
)
def test_which_end_of_samples_is_hidden_is_told(
    values: Tensor, hidden: Tensor, expected: list[str]
) -> None:
    scores, hidden = _scores(values), hidden[:, None, None]
    causal = scores.masked_fill(~SHOWN, -1e9).masked_fill(hidden, -1e9)
    masks = ~hidden, torch.zeros(2, 1, 5, 5).masked_fill(hidden, -1e9)
    attend = functional.scaled_dot_product_attention
    several = [scores.masked_fill(hidden, -1e9).softmax(-1) @ values]
    several += [attend(values, values, values, attn_mask=mask) for mask in masks]
    if not hidden[..., 0].any():
        # Nobody sees what is first but by a causal mask.
        several.append(causal.softmax(-1) @ values)
    for result in several:
        assert sorted(_told(result, "attention.side")) == expected
        if hidden.all(-1).any():
            # A softmax over what is hidden as a whole hides nothing.
            continue
        for end, key in (("first", 0), ("last", -1)):
            for is_padded in itertools.product([False, True], repeat=2):
                padding = {LENGTH: Padding(end, torch.tensor(is_padded))}
                told = _expected(hidden[:, 0, 0, key], hidden[:, 0, 0, -1 - key], is_padded)
                told = told if expected else []
                assert _told(result, "attention.padding", padding) == told
                assert _told(result, "attention.padding", {LENGTH + 1: padding[LENGTH]}) == []
    assert _told(scores.softmax(-1) @ values, "attention.side") == []


def test_of_other_masks_it_is_not_known() -> None:
    def hides(mask: Tensor | None) -> str:
        return attention_module._hides(mask, attention_module._is_hidden)

    assert hides(SHOWN) == "later"
    assert hides(None) == "unknown"
    assert hides(SHOWN.to("meta")) == "unknown"
    assert hides(SHOWN[:, :3]) == "unknown"
    assert hides(SHOWN[0]) == "unknown"
    assert hides(torch.zeros(0, 0, dtype=torch.bool)) == "unknown"


@given(st.integers(2, 200), st.integers(1, 40), st.sampled_from(["later", "earlier", "keys"]))
def test_large_masks_are_sampled(length: int, number: int, what: str) -> None:
    shown = torch.ones(length, length, dtype=torch.bool)
    shown = {"later": shown.tril(), "earlier": shown.triu(), "keys": shown}[what]
    mask = shown.expand(number, 2, length, length)
    assert attention_module._hides(mask, attention_module._is_hidden) == what


@pytest.mark.parametrize(
    ("axis", "expected"), [(-1, ["yes"]), (3, ["yes"]), (-2, ["no"]), (1, ["no"]), (0, ["no"])]
)
@pytest.mark.parametrize(
    "attend",
    [
        lambda weights, x: weights @ x,
        lambda weights, x: torch.einsum("bhqk,bhkd->bqhd", weights, x),
        lambda weights, x: torch.einsum("bhqk,bhkd->bhqd", functional.dropout(weights, 0.3), x),
        lambda weights, x: (x.mT @ weights.mT).mT,
        lambda weights, x: weights.flatten(0, 1).bmm(x.flatten(0, 1)),
        lambda weights, x: weights.permute(1, 0, 2, 3).float() @ x.permute(1, 0, 2, 3),
    ],
)
def test_along_which_axis_values_are_summed_is_told(
    values: Tensor, attend: Callable[[Tensor, Tensor], Tensor], axis: int, expected: list[str]
) -> None:
    result = attend(_scores(values).softmax(axis), values)
    assert _told(result, "attention.summed") == expected


def test_only_of_products_of_what_has_gradients_it_is_told(values: Tensor) -> None:
    # Soft assignments go to clusters that are normalised, and are summed up over samples.
    samples, assign = torch.randn(6, 8, requires_grad=True), nn.Linear(8, 3)
    assert _told(assign(samples).softmax(1).T @ samples, "attention.summed") == []
    without_bias = nn.Linear(8, 3, bias=False)
    for x in (samples.sin(), samples.sin().expand(2, 6, 8)):
        assert _told(without_bias(x).softmax(-1).mT @ x, "attention.summed") == []
    centres, x = nn.Parameter(torch.randn(3, 8)), samples.sin().expand(2, 6, 8)
    weights = torch.einsum("bnd,kd->bnk", x, centres).softmax(-1)
    assert _told(weights.mT @ x, "attention.summed") == []
    neighbours = torch.ones(6, 6)
    assert _told((neighbours @ samples).softmax(1).T @ samples, "attention.summed") == []
    # Weights that are divided by their sum over the positions are normalised twice.
    weights = _scores(values).softmax(-2)
    weights = weights / weights.sum(-1, keepdim=True)
    assert _told(weights @ values, "attention.summed") == []
    # A shape that is arranged anew may lose the axis.
    lost = _scores(values).softmax(-2).reshape(2, 4, LENGTH * LENGTH)
    assert _told(lost @ torch.randn(25, 3, requires_grad=True), "attention.summed") == []


def test_attention_of_torch_sums_up_as_it_should() -> None:
    inputs = torch.randn(3, LENGTH, 8)
    result, _ = nn.MultiheadAttention(8, 2, batch_first=True)(inputs, inputs, inputs)
    assert _told(result, "attention.summed") == ["yes"]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
    assert _told(layer(inputs, mask), "self_attention.hides") == ["later"]
