"""What clips gradients is given is told, and reaches it as it would without the recorder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad

from tests.recorder.recording import CALLS_ONLY, record
from traincheck_plugin.vocabulary import GIVEN

Give = Callable[[nn.Module], "Iterable[Tensor] | Tensor"]


def _used_up(parameters: Iterable[Tensor]) -> Iterable[Tensor]:
    list(parameters)
    return parameters


WAYS: dict[str, tuple[Give, bool]] = {
    "list": (lambda m: list(m.parameters()), True),
    "one": (lambda m: m.weight, True),
    "generator": (lambda m: m.parameters(), True),
    "filter": (lambda m: filter(lambda p: p.requires_grad, m.parameters()), True),
    "expression": (lambda m: (p for p in m.parameters()), True),
    "values": (lambda m: dict(m.named_parameters()).values(), True),
    "empty": (lambda m: [], False),
    "used up filter": (lambda m: _used_up(filter(None.__ne__, m.parameters())), False),
    "used up generator": (lambda m: _used_up(m.parameters()), False),
    "another model": (lambda m: nn.Linear(2, 2).parameters(), False),
}


def _clip(give: Give, name: str, *, by_keyword: bool) -> tuple[list[Tensor], object, list[str]]:
    """Return the gradients, the result and the warnings of a clip."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    (model(torch.randn(4, 3)) ** 2).sum().backward()
    function = getattr(clip_grad, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = give(model)
        result = function(parameters=given, **_limit(name)) if by_keyword else function(given, 0.1)
    assert isinstance(given, (list, Tensor, type({}.values()))) or list(given) == []
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return gradients, result, [str(one.message) for one in caught]


def _limit(name: str) -> dict[str, float]:
    return {"max_norm" if "norm" in name else "clip_value": 0.1}


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize(
    ("way", "name"),
    [
        *((way, "clip_grad_norm_") for way in WAYS),
        # It raises where there are none.
        *((way, "clip_grad_value_") for way, (_, has_gradients) in WAYS.items() if has_gradients),
    ],
)
def test_a_clip_tells_whether_it_is_given_gradients(way: str, name: str, by_keyword: bool) -> None:
    give, has_gradients = WAYS[way]
    expected = _clip(give, name, by_keyword=by_keyword)
    found: list[tuple[list[Tensor], object, list[str]]] = []
    calls = record(lambda: found.append(_clip(give, name, by_keyword=by_keyword)), CALLS_ONLY)
    [call] = calls.of_role("clip")
    told = [(item.path, item.value) for item in call.outputs]
    assert told == ([] if has_gradients else [(GIVEN, "none")])
    [(gradients, result, caught)] = found
    assert all(map(torch.equal, gradients, expected[0]))
    assert torch.equal(torch.as_tensor(result or 0), torch.as_tensor(expected[1] or 0))
    assert caught == expected[2]


def test_a_mistake_is_raised_as_it_was() -> None:
    def train() -> None:
        with pytest.raises(TypeError):
            clip_grad.clip_grad_norm_()
        with pytest.raises(TypeError, match="not iterable"):
            clip_grad.clip_grad_norm_(3, 1.0)

        def broken() -> Iterable[Tensor]:
            raise KeyError("parameters")
            yield

        with pytest.raises(KeyError):
            clip_grad.clip_grad_norm_(broken(), 1.0)

    train()
    record(train, CALLS_ONLY)
