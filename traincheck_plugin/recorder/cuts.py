"""Terms of a loss that are computed of what gradients go to, and give none themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from traincheck_plugin.recorder.followed import Followed, name_of, tensors_in
from traincheck_plugin.vocabulary import NO_CUT

MAX_CUTS = 4
"""Cuts that a tensor is made of, and that are told of a loss: of more nothing is told."""

_ADDING = frozenset({"add", "sub", "iadd", "isub", "radd", "rsub"})
_LINEAR = _ADDING | {
    *("mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv", "neg"),
    *("mean", "sum", "squeeze", "reshape", "view", "clone", "float", "to"),
}
"""Functions through which a summand stays one, as long as nothing else with gradients comes in."""

is_grad_enabled: Callable[[], bool] = torch.is_grad_enabled


class Cuts:
    """Follows what is cut off from gradients, to the losses that it is a term of.

    A tensor is cut where autograd records, what it is computed of has gradients, and it has none:
    as `detach`, a comparison, `argmax` and `torch.autograd.grad` return it. What is computed of cut
    tensors is cut, too, until something with gradients joins. A term is a single number that is
    added to one with gradients. Tensors are followed by weak references: none lives longer for it.

    Attributes:
        is_used: whether functions are observed.
    """

    def __init__(self) -> None:
        self._cut = Followed[frozenset[str]]()
        self._losses = Followed[frozenset[str]]()
        self.is_used = False

    def observe(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, result: Any
    ) -> None:
        """Take note of a call that has returned."""
        self.is_used = True
        if isinstance(result, (list, tuple)):
            for one in tensors_in(result):
                self.observe(function, args, kwargs, one)
        elif isinstance(result, torch.Tensor) and is_grad_enabled():
            if not result.requires_grad:
                self._note_cut(function, args, kwargs, result)
            elif (self._cut or self._losses) and result.numel() == 1:
                self._note_term(function, args, kwargs, result)

    def take(self, loss: torch.Tensor) -> str:
        """Return which functions cut the terms of a loss, sorted, with spaces between.

        It is `NO_CUT` where none is cut, and "" where no functions are observed.
        """
        terms = self._losses.get(loss)
        self._cut.forget_gone()
        self._losses.forget_gone()
        if terms:
            return " ".join(sorted(terms))
        return NO_CUT if self.is_used else ""

    def _note_cut(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, result: Any
    ) -> None:
        cuts: frozenset[str] = frozenset()
        for tensor in tensors_in(args, kwargs):
            if tensor.requires_grad:
                cuts |= {name_of(function)}
            elif known := self._cut.get(tensor):
                cuts |= known
        if 0 < len(cuts) <= MAX_CUTS:
            self._cut.follow(result, cuts)

    def _note_term(
        self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, result: Any
    ) -> None:
        name = name_of(function)
        if name not in _LINEAR:
            return
        terms: frozenset[str] = frozenset()
        num_with_gradients = 0
        for tensor in tensors_in(args, kwargs):
            if tensor.requires_grad:
                num_with_gradients += 1
                terms |= self._losses.get(tensor) or frozenset()
            elif name in _ADDING and tensor.numel() == 1:
                terms |= self._cut.get(tensor) or frozenset()
        is_sum = name in _ADDING or num_with_gradients == 1
        if is_sum and 0 < len(terms) <= MAX_CUTS:
            self._losses.follow(result, terms)
