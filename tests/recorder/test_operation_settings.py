"""What the operations of a loss are set to, as its autograd graph tells it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.recorder.recording import CALLS_ONLY, batches, make_model, record
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import operation_settings
from traincheck_plugin.recorder.operation_settings import nodes_of, settings

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def _told(result: Tensor) -> set[str] | None:
    nodes = nodes_of(result.sum().grad_fn)
    return None if nodes is None else set(settings(nodes).split()) - {"loss.flat=no"}


@pytest.fixture
def values() -> Tensor:
    return torch.randn(2, 4, 5, 8, requires_grad=True)


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: x.softmax(-1), {"softmax.dimension=-1"}),
        (lambda x: x.softmax(1), {"softmax.dimension=-3"}),
        (lambda x: x.log_softmax(3), {"log_softmax.dimension=-1"}),
        (lambda x: x.mean((1, -1)), {"mean.dimension=-3,-1"}),
        (lambda x: x.mean((1, 3), keepdim=True), {"mean.dimension=-3,-1"}),
        (lambda x: functional.adaptive_avg_pool2d(x, 1), {"mean.dimension=-2,-1"}),
        (lambda x: x.sum(0), {"sum.dimension=-4"}),
        (lambda x: functional.normalize(x, dim=1), {"linalg_vector_norm.dimension=-3"}),
        (lambda x: x.logsumexp(2), {"logsumexp.dimension=-2"}),
        (lambda x: x.max(1)[0], {"max.dimension=-3"}),
        # What goes over all dimensions, and what only arranges, tells nothing.
        (lambda x: x.mean() + x.transpose(0, 1).unbind(1)[0], set()),
    ],
)
def test_dimensions_are_counted_from_the_last(
    values: Tensor, compute: Callable[[Tensor], Tensor], expected: set[str]
) -> None:
    assert _told(compute(values)) == expected


@pytest.mark.parametrize(
    ("shapes", "mixes"),
    [
        ([(2, 3, 4, 5), (6, 20)], "no"),
        ([(6, 20), (2, 3, 4, 5)], "no"),
        ([(2, 3, 4, 5), (-1,)], "no"),
        ([(2, 3, 1, 5), (2, 1, 3, 5)], "no"),
        ([(4, 8, 5), (4, 4, 10), (8, 20)], "no"),
        # A head, and positions: axes are exchanged.
        ([(4, 3, 5, 8), (4, 5, 24)], "yes"),
        ([(4, 6), (6, 4)], "yes"),
        ([(2, 7, 5), (2, 5, 7)], "yes"),
        ([(2, 7, 5), (7, 10)], "yes"),
        # One is a multiple of the other: it may be split.
        ([(4, 8), (8, 4)], "no"),
        ([(0, 3), (3, 0)], None),
    ],
)
def test_reshapes_tell_whether_they_exchange_axes(
    shapes: list[tuple[int, ...]], mixes: str | None
) -> None:
    first, *others = shapes
    result = torch.randn(first, requires_grad=True).exp()
    for shape in others:
        result = result.reshape(shape)
    assert _told(result) == ({f"reshape.mixes={mixes}"} if mixes else set())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_splitting_and_merging_is_not_mixing(shape: list[int], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(shape)))) | {0, len(shape)})
    merged = [math.prod(shape[start:stop]) for start, stop in pairwise(cuts)]
    for before, after in ((shape, merged), (merged, shape)):
        result = torch.zeros(before, requires_grad=True).exp().reshape(after)
        assert _told(result) in ({"reshape.mixes=no"}, set())


def test_what_is_skewed_and_parameters_may_mix() -> None:
    scores = torch.randn(2, 5, 5, requires_grad=True)
    skewed = functional.pad(scores.exp(), (1, 0)).view(2, 6, 5)[:, 1:]
    assert _told(skewed) == set()
    assert _told(torch.randn(6, 4, requires_grad=True).view(4, 6)) == set()
    shifted = torch.cat([scores.new_zeros(2, 5, 1), scores.exp()], dim=2).view(2, 6, 5)
    assert _told(shifted) == set()
    # Of positions that are told for longer than needed, without a padding.
    longer = torch.randn(2, 5, 9, requires_grad=True).exp()
    assert _told(longer.reshape(2, 9, 5)) == {"reshape.mixes=yes"}
    assert _told(longer.reshape(2, 9, 5)[:, 1:]) == set()


TARGET, ONES = torch.tensor([0, 1, 2]), torch.ones(3, 3)


@pytest.mark.parametrize(
    ("compute", "picked"),
    [
        (lambda x: functional.cross_entropy(x, TARGET), "yes"),
        (lambda x: functional.nll_loss(x.log_softmax(1), TARGET), "yes"),
        (lambda x: functional.nll_loss(x.log_softmax(-1), TARGET), "yes"),
        (lambda x: functional.nll_loss(x.log_softmax(0), TARGET), "no"),
        (lambda x: functional.nll_loss(x.log_softmax(0).t(), TARGET), "yes"),
        (lambda x: functional.nll_loss(x.t().log_softmax(1).t(), TARGET), "no"),
        (lambda x: x.log_softmax(1).gather(1, TARGET[:, None]), "yes"),
        (lambda x: x.log_softmax(0).gather(1, TARGET[:, None]), "no"),
        (lambda x: x.log_softmax(0).float()[None].squeeze(0).gather(1, TARGET[:, None]), "no"),
        (lambda x: functional.nll_loss(x, TARGET), None),
        (lambda x: functional.nll_loss(x.log_softmax(0) * 2, TARGET), None),
        (lambda x: x.gather(1, TARGET[:, None]), None),
    ],
)
def test_it_is_told_whether_classes_are_picked_where_they_add_up_to_one(
    compute: Callable[[Tensor], Tensor], picked: str | None
) -> None:
    told = _told(compute(torch.randn(3, 3, requires_grad=True).sin())) or set()
    expected = {f"log_softmax.picked={picked}"} if picked else set()
    assert {one for one in told if ".picked" in one} == expected


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_classes_of_sequences_and_images_are_found(dim: int) -> None:
    values = torch.randn(5, 2, 4, requires_grad=True).sin()
    lengths = torch.tensor([5, 5]), torch.tensor([2, 2])
    loss = functional.ctc_loss(values.log_softmax(dim), torch.ones(2, 2).long(), *lengths)
    assert f"log_softmax.picked={'yes' if dim in (2, -1) else 'no'}" in (_told(loss) or ())
    images = values[..., None].log_softmax(dim)
    loss = functional.nll_loss(images, torch.zeros(5, 4, 1).long())
    assert f"log_softmax.picked={'yes' if dim == 1 else 'no'}" in (_told(loss) or ())


OTHERS = torch.tensor([0, 1, 2])
_entropy = functional.cross_entropy


@pytest.mark.parametrize(
    ("compute", "repeated"),
    [
        (lambda x: _entropy(x, TARGET) + _entropy(x, TARGET), "yes"),
        (lambda x: _entropy(x, TARGET) + _entropy(x.t(), TARGET), "no"),
        (lambda x: _entropy(x, TARGET) + _entropy(x, OTHERS), "no"),
        (lambda x: functional.mse_loss(x, ONES) * functional.mse_loss(x, ONES), "yes"),
        (lambda x: functional.mse_loss(x, ONES) + functional.l1_loss(x, ONES), None),
        (lambda x: functional.mse_loss(x, ONES) * 2 + functional.mse_loss(x.exp(), ONES), "no"),
        (lambda x: _entropy(x, TARGET), None),
        # The mean, and the hardest; some classes more than others.
        (lambda x: _entropy(x, TARGET) + _entropy(x, TARGET, reduction="none").max(), "no"),
        (lambda x: _entropy(x, TARGET) + _entropy(x, TARGET, weight=torch.ones(3)), "no"),
        (lambda x: _entropy(x, TARGET) + _entropy(x, TARGET, ignore_index=1), "no"),
        (lambda x: functional.huber_loss(x, ONES) + functional.huber_loss(x, ONES, delta=2), "no"),
    ],
)
def test_it_is_told_whether_the_same_is_compared_twice(
    compute: Callable[[Tensor], Tensor], repeated: str | None
) -> None:
    told = _told(compute(torch.randn(3, 3, requires_grad=True).sin())) or set()
    expected = {f"loss.repeated={repeated}"} if repeated else set()
    assert {one for one in told if ".repeated" in one} == expected


@pytest.mark.parametrize("step", [torch.round, torch.floor, torch.ceil, torch.trunc, torch.sign])
@pytest.mark.parametrize(
    ("compute", "is_flat"),
    [
        (lambda x, step: step(x * 3).exp(), True),
        (lambda x, step: step(x) * step(x.exp()) + 1, True),
        # The distance to the nearest, a second term, and a straight-through estimator.
        (lambda x, step: x - step(x), False),
        (lambda x, step: step(x).exp() + x.exp(), False),
        (lambda x, step: x + (step(x) - x).detach(), False),
        (lambda x, step: x * step(x), False),
    ],
)
def test_a_loss_of_what_is_rounded_is_flat(
    compute: Callable[..., Tensor], is_flat: bool, step: Callable[[Tensor], Tensor]
) -> None:
    values = torch.randn(3, requires_grad=True)
    loss = compute(values, step).sum()
    nodes = nodes_of(loss.grad_fn)
    assert nodes is not None
    assert f"loss.flat={'yes' if is_flat else 'no'}" in settings(nodes).split()
    loss.backward()
    assert values.grad is not None
    assert not is_flat or not values.grad.any()


def test_losses_of_images_tell_it_too() -> None:
    images, classes = torch.randn(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 4, 4).long()
    assert _told(functional.cross_entropy(images, classes, ignore_index=1)) == {
        *("log_softmax.dimension=-3", "log_softmax.picked=yes", "nll_loss2d.ignored=1"),
    }


@pytest.mark.parametrize("loss", ["cross_entropy", "nll_loss"])
def test_losses_tell_what_they_leave_out(loss: str) -> None:
    outputs, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    function = getattr(functional, loss)
    of_softmax = {"log_softmax.dimension=-1", "log_softmax.picked=yes"}
    entropy = of_softmax if loss == "cross_entropy" else set()
    assert _told(function(outputs, target)) == {"nll_loss.ignored=-100"} | entropy
    # A sum that is divided is a mean, too.
    told = _told(function(outputs, target, ignore_index=0, reduction="sum") / 3)
    assert told == {"nll_loss.ignored=0"} | entropy


@pytest.mark.parametrize(
    ("lengths", "told"), [([5, 4, 5], {"yes"}), ([5, 5, 5], {"no"}), ([5], set())]
)
def test_lengths_of_samples_hide_padding(lengths: list[int], told: set[str]) -> None:
    number = len(lengths)
    outputs = torch.randn(5, number, 4, requires_grad=True).log_softmax(2)
    loss = functional.ctc_loss(
        outputs, torch.ones(number, 2).long(), torch.tensor(lengths), torch.full((number,), 2)
    )
    found = {item for item in _told(loss) if "masked" in item}
    assert found == {f"ctc_loss.masked={value}" for value in told}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, "no"), ({"is_causal": True}, "yes"), ({"attn_mask": CAUSAL}, "yes")],
)
def test_attention_tells_whether_it_is_masked(
    values: Tensor, dropout: float, arguments: dict[str, object], expected: str
) -> None:
    result = functional.scaled_dot_product_attention(
        values, values, values, dropout_p=dropout, **arguments
    )
    told = {item for item in _told(result) if ".masked=" in item}
    assert told == {f"attention.masked={expected}", f"self_attention.masked={expected}"}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (lambda s: s, "no"),
        (lambda s: s.masked_fill(~CAUSAL, -1e9), "yes"),
        (lambda s: torch.where(CAUSAL, s, torch.tensor(-1e9)), "yes"),
        (lambda s: (s + torch.zeros(5, 5)) * 0.5, "yes"),
        # A bias that is learned, as that of relative positions, hides nothing.
        (lambda s: s + s.mean(0, keepdim=True), "no"),
        (lambda s: s + (s.mean(0, keepdim=True) + torch.zeros(5, 5)), "yes"),
    ],
)
def test_masks_by_hand_are_seen(
    values: Tensor, mask: Callable[[Tensor], Tensor], expected: str
) -> None:
    scores = values @ values.transpose(-1, -2) / 3
    weights = functional.dropout(mask(scores).softmax(-1), 0.5)
    assert f"attention.masked={expected}" in _told(weights @ values)
    result = torch.einsum("bhqk,bhkd->bqhd", weights, values)
    assert f"attention.masked={expected}" in _told(result)
    # A router gives no attention.
    routed = _told(weights * weights.mean(-1, keepdim=True))
    assert "softmax.dimension=-1" in routed
    assert not any("attention" in item for item in routed)


@pytest.mark.parametrize("needs_weights", [True, False])
def test_the_mask_of_a_multi_head_attention_is_seen(needs_weights: bool) -> None:
    attention, inputs = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)

    def told(**arguments: Tensor) -> set[str]:
        result, _ = attention(inputs, inputs, inputs, need_weights=needs_weights, **arguments)
        return {item.partition("=")[2] for item in _told(result) if ".masked=" in item}

    assert told() == {"no"}
    assert told(attn_mask=~CAUSAL) == {"yes"}
    assert told(key_padding_mask=torch.zeros(2, 5, dtype=torch.bool)) == {"yes"}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_models_of_transformers_tell_their_masks(implementation: str) -> None:
    tokens = torch.randint(0, 50, (2, 9))
    sizes = {"vocab_size": 50, "attn_implementation": implementation}
    generative = GPT2LMHeadModel(
        GPT2Config(n_layer=2, n_embd=8, n_head=2, bos_token_id=0, eos_token_id=0, **sizes)
    )
    told = {one for one in _told(generative(tokens).logits) if ".masked=" in one}
    assert told == {"attention.masked=yes", "self_attention.masked=yes"}
    encoder = BertModel(
        BertConfig(
            num_hidden_layers=2,
            hidden_size=8,
            num_attention_heads=2,
            intermediate_size=8,
            **sizes,
        )
    )
    padding = torch.ones_like(tokens)
    padding[0, 5:] = 0
    told = {one for one in _told(encoder(tokens, padding)[0]) if ".masked=" in one}
    assert told == {"attention.masked=yes", "self_attention.masked=yes"}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_attention_to_another_sequence_is_told_from_that_to_the_own(dropout: float) -> None:
    queries, keys = torch.randn(2, 2, 4, 8, requires_grad=True), torch.randn(2, 2, 6, 8)
    result = functional.scaled_dot_product_attention(queries, keys, keys, dropout_p=dropout)
    assert {item for item in _told(result) if ".masked=" in item} == {"attention.masked=no"}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_single_sample_needs_no_mask(dropout: float) -> None:
    single = torch.randn(1, 2, 4, 8, requires_grad=True)

    def told(**arguments: bool) -> set[str]:
        result = functional.scaled_dot_product_attention(
            single, single, single, dropout_p=dropout, **arguments
        )
        return {item for item in _told(result) if ".masked=" in item}

    assert told() == set()
    assert told(is_causal=True) == {"attention.masked=yes", "self_attention.masked=yes"}
    by_hand = _told((single @ single.mT).softmax(-1) @ single)
    assert not any(".masked=" in item for item in by_hand)


def test_what_is_hidden_tells_nothing(monkeypatch: pytest.MonkeyPatch, values: Tensor) -> None:
    def compute(x: Tensor) -> Tensor:
        return x.softmax(-1)

    hidden = checkpoint(compute, values, use_reentrant=True).log_softmax(-1)
    assert _told(hidden) is None
    seen = checkpoint(compute, values, use_reentrant=False).log_softmax(-1)
    assert _told(seen) == _told(compute(values).log_softmax(-1))
    monkeypatch.setattr(operation_settings, "MAX_OPERATIONS", 3)
    assert _told(compute(values))
    assert _told(compute(values * 2)) is None


def test_hooks_on_what_is_saved_are_not_called(values: Tensor) -> None:
    def never(_: object) -> Tensor:
        raise AssertionError

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, never):
        result = functional.scaled_dot_product_attention(values, values, values, CAUSAL)
        result = result.max(1)[0].sum() * 2
    assert "attention.masked=yes" in settings(nodes_of(result.grad_fn) or ())


def test_each_backward_tells_the_settings_of_its_loss() -> None:
    def train() -> None:
        for batch in batches(2):
            make_model()(batch).softmax(0).mean(1).sum().backward()

    found = [
        {item.path: item.value for item in call.inputs}["settings"]
        for call in record(train, CALLS_ONLY).of_role("backward")
    ]
    assert found == ["loss.flat=no mean.dimension=-1 softmax.dimension=-2"] * 2


def test_what_is_read_of_a_graph_is_not_recorded_as_the_users() -> None:
    def train() -> None:
        values = torch.randn(2, 3, 4, requires_grad=True)
        scores = (values @ values.transpose(1, 2)).masked_fill(torch.eye(3).bool(), -1e9)
        told = (scores.softmax(2) @ values).sum(1)
        target = torch.tensor([0, 1])
        loss = functional.cross_entropy(told, target) + functional.cross_entropy(told * 2, target)
        loss.backward()

    calls = record(train, Plan(functions=None, attributes={}))
    used = {
        "randn",
        "transpose",
        "matmul",
        "eye",
        "bool",
        "masked_fill",
        "softmax",
        "sum",
        "tensor",
    }
    used |= {"cross_entropy", "mul", "add", "backward"}
    assert {name.rpartition(".")[2] for call in calls.calls for name in call.names} <= used
