"""What is drawn at random, and where it goes: one draw may be used in several places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from traincheck_plugin.recorder.followed import Followed, name_of, tensors_in

MAX_DRAWS = 4
"""Draws that a tensor is made of: of one that is made of more nothing is told."""

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


class Draws:
    """Follows tensors that are drawn at random to where they meet others.

    What is computed of draws alone, such as a mask of a comparison, or indices of a sort, is of
    these draws. Tensors are followed by weak references: none lives longer for it.
    """

    def __init__(self) -> None:
        self._known = Followed[frozenset[_Draw]]()
        self._used: dict[_Draw, None] = {}

    def observe(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, result: Any
    ) -> None:
        """Take note of a call that has returned."""
        if function in _DRAWING:
            if isinstance(result, torch.Tensor) and not result.requires_grad:
                # Parameters are drawn as well where they are initialised.
                self._known.follow(result, frozenset((_Draw(name_of(function)),)))
            return
        if not self._known:
            return
        draws: frozenset[_Draw] = frozenset()
        others = []
        for tensor in tensors_in(args, kwargs):
            known = self._known.get(tensor)
            if known:
                draws = known if not draws else draws | known
            else:
                others.append(tensor)
        if not draws:
            return
        if not others:
            if len(draws) <= MAX_DRAWS:
                for tensor in tensors_in((result,)):
                    self._known.follow(tensor, draws)
            return
        use = f"{name_of(function)}:{'+'.join(sorted({_kind(tensor) for tensor in others}))}"
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
        self._known.forget_gone()
        return " ".join(sorted(told))


def _kind(tensor: torch.Tensor) -> str:
    """Return what a tensor is like, whatever its size and precision."""
    dtype = tensor.dtype
    kind = "bool" if dtype == torch.bool else "float" if dtype.is_floating_point else "int"
    return f"{kind}{tensor.dim()}"
