"""What is drawn at random, and where it goes: one draw may be used in several places."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

MAX_TENSORS = 4096
"""Tensors that are followed at a time; no more are until some are gone."""

MAX_DRAWS = 4
"""Draws that a tensor is made of: of one that is made of more nothing is told."""

MAX_ELEMENTS = 8
"""Elements of an argument that are looked at, as of a list of tensors or an index."""

_LIKE = ("rand", "randn", "randint")
_DRAWING = frozenset(
    {
        *(getattr(torch, name) for name in _LIKE),
        *(getattr(torch, f"{name}_like") for name in _LIKE),
        *(torch.bernoulli, torch.multinomial, torch.normal, torch.poisson, torch.randperm),
        *(torch.Tensor.bernoulli, torch.Tensor.multinomial),
        *(torch.Tensor.bernoulli_, torch.Tensor.cauchy_, torch.Tensor.exponential_),
        *(torch.Tensor.geometric_, torch.Tensor.log_normal_, torch.Tensor.normal_),
        *(torch.Tensor.random_, torch.Tensor.uniform_),
    }
)
"""Functions whose result is random."""


class _Draw:
    """Something drawn at random.

    Attributes:
        name: of the function that drew it.
        uses: where it went since they were last told.
    """

    __slots__ = ("name", "uses")

    def __init__(self, name: str) -> None:
        self.name = name
        self.uses: set[str] = set()


class _Known(NamedTuple):
    tensor: weakref.ref[torch.Tensor]
    draws: frozenset[_Draw]


class Draws:
    """Follows tensors that are drawn at random to where they meet others.

    What is computed of draws alone, such as a mask of a comparison, or indices of a sort, is of
    these draws. Tensors are followed by weak references: none lives longer for it.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._used: dict[_Draw, None] = {}

    def observe(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, result: Any
    ) -> None:
        """Take note of a call that has returned."""
        if function in _DRAWING:
            if isinstance(result, torch.Tensor) and not result.requires_grad:
                # Parameters are drawn as well where they are initialised.
                self._follow(result, frozenset((_Draw(_name(function)),)))
            return
        if not self._known:
            return
        draws: frozenset[_Draw] = frozenset()
        others = []
        for tensor in _tensors(args, kwargs):
            known = self._draws_of(tensor)
            if known:
                draws = known if not draws else draws | known
            else:
                others.append(tensor)
        if not draws:
            return
        if not others:
            if len(draws) <= MAX_DRAWS:
                for tensor in _tensors((result,), None):
                    self._follow(tensor, draws)
            return
        use = f"{_name(function)}:{'+'.join(sorted({_kind(tensor) for tensor in others}))}"
        for draw in draws:
            draw.uses.add(use)
            self._used[draw] = None

    def take(self) -> str:
        """Return where draws went since the last call.

        Returns:
            ``function>use,use`` for each draw that was used, sorted, with spaces between, where a
            use is a function with what the draw met in it: ``randn>mse_loss:float2,mul:float0``
        """
        told = {f"{draw.name}>{','.join(sorted(draw.uses))}" for draw in self._used}
        for draw in self._used:
            draw.uses.clear()
        self._used.clear()
        for key in [key for key, known in self._known.items() if known.tensor() is None]:
            del self._known[key]
        return " ".join(sorted(told))

    def _draws_of(self, tensor: torch.Tensor) -> frozenset[_Draw] | None:
        known = self._known.get(id(tensor))
        # Another may have its place in memory now.
        return known.draws if known is not None and known.tensor() is tensor else None

    def _follow(self, tensor: torch.Tensor, draws: frozenset[_Draw]) -> None:
        if len(self._known) < MAX_TENSORS or id(tensor) in self._known:
            self._known[id(tensor)] = _Known(weakref.ref(tensor), draws)


def _tensors(args: Iterable[Any], kwargs: Mapping[str, Any] | None) -> Iterator[torch.Tensor]:
    """Yield the tensors among arguments, and in the lists, tuples and slices among these."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for inner in value[:MAX_ELEMENTS]:
                if isinstance(inner, torch.Tensor):
                    yield inner


def _name(function: Callable[..., Any]) -> str:
    """Return what a function is called: operators and methods as the functions they stand for."""
    name: str = getattr(function, "__name__", type(function).__name__)
    return name.strip("_").replace(">", "").replace(" ", "")


def _kind(tensor: torch.Tensor) -> str:
    """Return what a tensor is like, whatever its size and precision."""
    dtype = tensor.dtype
    kind = "bool" if dtype == torch.bool else "float" if dtype.is_floating_point else "int"
    return f"{kind}{tensor.dim()}"
