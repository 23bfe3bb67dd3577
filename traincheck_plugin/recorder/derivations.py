"""How that is computed which gradients do not go to, where it meets what they go to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import torch

from traincheck_plugin.recorder.calls import OpenCall
from traincheck_plugin.recorder.followed import Followed, name_of, tensors_in
from traincheck_plugin.recorder.sources import Sources
from traincheck_plugin.vocabulary import FROM, NO_DERIVATION, WITHIN

MAX_OPERATIONS = 24
"""Operations that a tensor is computed by: of what takes more nothing is told."""

MAX_MEETINGS = 64
"""Of one loss. More are those of a model that computes its constants in each layer anew."""

_ARRANGING = frozenset(
    {
        *("T", "as_tensor", "bool", "broadcast_to", "cat", "chunk", "clone", "contiguous", "cpu"),
        *("cuda", "data", "detach", "double", "expand", "expand_as", "flatten", "float"),
        *("from_numpy", "getitem", "half", "int", "long", "mT", "pin_memory", "requires_grad"),
        *("reshape", "split", "squeeze", "stack", "tensor", "to", "type", "type_as", "unbind"),
        *("unflatten", "unsqueeze", "view"),
    }
)
"""Functions that give the values that they are given, or some of them."""

_SETTING = torch.Tensor.__setitem__
_FORMAL = frozenset({"copy", "inplace", "keepdim", "non_blocking", "pin_memory", "requires_grad"})
"""Flags that leave all values as they are."""

_SPELLINGS = {
    **dict.fromkeys(("iadd", "radd"), "add"),
    **dict.fromkeys(("isub", "subtract"), "sub"),
    **dict.fromkeys(("imul", "rmul", "multiply"), "mul"),
    **dict.fromkeys(("divide", "idiv", "itruediv", "true_divide", "truediv"), "div"),
    **dict.fromkeys(("rdiv", "rtruediv"), "reciprocal"),
    "bitwise_and": "and",
    "bitwise_not": "invert",
    "bitwise_or": "or",
    "remainder": "mod",
}
"""Names of one operation: which one torch calls differs by version."""

is_grad_enabled: Callable[[], bool] = torch.is_grad_enabled

_HANDLER = torch.overrides.handle_torch_function.__code__

_Operation = tuple[CodeType, int, str]
"""Where in the user's code a function is called, and its name."""


class Derivations:
    """Follows tensors without gradients through the functions that the user's code calls.

    What a library computes of them is computed by the same operations: its own come and go with its
    versions. What a model gives without gradients is where a derivation begins. Tensors are
    followed by weak references: none lives longer for it.

    Attributes:
        is_used: whether functions are observed.
    """

    def __init__(self, sources: Sources) -> None:
        self._is_user = sources.is_user
        self._known = Followed[frozenset[_Operation]]()
        self._met: set[str] = set()
        self._is_within = False
        self.is_used = False

    def observe(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        result: Any,
        frame: FrameType,
        forward: OpenCall | None,
    ) -> None:
        """Take note of a call from *frame* that has returned, and the *forward* that it is in."""
        self.is_used = True
        if function is _SETTING:
            result = args[0]
        several = (result,) if isinstance(result, torch.Tensor) else tensors_in(_few(result))
        for one in several:
            if one.requires_grad:
                # The forward of a loss is none of a model.
                self._is_within = forward is not None and forward.trains
                if self._known:
                    self._meet(function, args, kwargs)
            elif forward is None or is_grad_enabled():
                self._derive(function, args, kwargs, one, frame)

    def take(self) -> str:
        """Return what met with gradients since the last call.

        Returns:
            ``function<operation,operation`` for each function that was given something with
            gradients, and something without them that was computed by these operations; sorted,
            with spaces between. `WITHIN` is before them where the loss was computed in the forward
            of a model, as a wrapper for several devices makes of a whole step: what is computed
            there without gradients is not followed. `NO_DERIVATION` where nothing was, and "" where
            no functions are observed, and where there are too many.
        """
        met, self._met = self._met, set()
        self._known.forget_gone()
        if not self.is_used or len(met) > MAX_MEETINGS:
            return ""
        return " ".join([WITHIN] * self._is_within + sorted(met)) or NO_DERIVATION

    def _derive(
        self,
        function: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        result: torch.Tensor,
        frame: FrameType,
    ) -> None:
        operations: frozenset[_Operation] = frozenset()
        name = _named(function, kwargs)
        if name not in _ARRANGING:
            caller = _caller(frame)
            if caller is not None and self._is_user(caller.f_code):
                operations = frozenset(((caller.f_code, caller.f_lasti, name),))
        for tensor in tensors_in(args, kwargs):
            known = self._known.get(tensor)
            if known is not None:
                operations |= known
        if len(operations) > MAX_OPERATIONS:
            operations = frozenset(islice(operations, MAX_OPERATIONS + 1))
        if operations:
            self._known.follow(result, operations)

    def _meet(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> None:
        for tensor in tensors_in(args, kwargs):
            known = None if tensor.requires_grad else self._known.get(tensor)
            if known is not None and len(known) <= MAX_OPERATIONS:
                told = ",".join(sorted(operation for _, _, operation in known))
                self._met.add(f"{_named(function, kwargs)}{FROM}{told}")


def _few(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _named(function: Any, kwargs: Mapping[str, Any] | None) -> str:
    """Return the name of a function in all versions, with the flags that are set."""
    name = name_of(function)
    name = _SPELLINGS.get(name, name)
    if kwargs:
        flags = sorted(k for k, value in kwargs.items() if value is True and k not in _FORMAL)
        name += f"[{'+'.join(flags)}]" if flags else ""
    return name


def _caller(frame: FrameType | None) -> FrameType | None:
    """Return what calls a function: those that Python implements ask for the mode themselves."""
    if frame is not None and frame.f_code is _HANDLER:
        function = frame.f_back
        return None if function is None else function.f_back
    return frame
