"""Backward passes: through a tensor, through `torch.autograd`, and gradients on request."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced


class BackwardProbe:
    """Observes each backward pass once, under the name by which it was entered.

    `Tensor.backward` also answers to ``torch.autograd.backward``, which it calls.
    `torch.autograd.grad` does not accumulate gradients: it is recorded, and counts for nothing.
    """

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the three entrances."""
        direct = tape.apis.function("torch.autograd.backward", "backward")
        through_tensor = tape.apis.function(
            "torch.Tensor.backward",
            "backward",
            "torch._tensor.Tensor.backward",
            "torch.autograd.backward",
        )
        grad = tape.apis.function("torch.autograd.grad", "backward")
        patches.wrap(torch.Tensor, "backward", _recorded(tape, through_tensor))
        patches.everywhere(
            {
                torch.autograd.backward: _recorded(tape, direct)(torch.autograd.backward),
                torch.autograd.grad: _recorded(tape, grad, counts=False)(torch.autograd.grad),
            }
        )

    def detach(self) -> None:
        """Nothing beyond the patches."""


def _recorded(
    tape: Tape, api: int, *, counts: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            stack = tape.threads.stack
            if is_traced() or not tape.is_listening or (stack and stack[-1].role == "backward"):
                return function(*args, **kwargs)
            return tape.around(
                "backward",
                api,
                function,
                args,
                kwargs,
                counts=counts,
                is_summarised=True,
                note=partial(_with_factor, tape, args) if counts else None,
            )

        return wrapper

    return make


def _with_factor(tape: Tape, args: tuple[Any, ...], arguments: int) -> int:
    """Return the code *arguments* with the constant that the loss was multiplied by, if any."""
    loss = args[0] if args else None
    if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
        return arguments
    factor = constant_factor(loss.grad_fn)
    extended = tape.signatures.extended
    return arguments if factor == 1.0 else extended(arguments, "factor", repr(factor))


_FACTORS = {"MulBackward0": 1, "DivBackward0": -1}
_NUMBERS = frozenset({torch.float64, torch.int64})
"""What Python numbers become in a graph. The scale of a gradient scaler is float32."""

MAX_FACTORS = 8


def constant_factor(node: Any) -> float:
    """Return the product of the numbers that the result of *node* was multiplied or divided by.

    NaN where compiled code hides them. The graph is only looked at: no tensor on a device is read.
    """
    factor = 1.0
    for _ in range(MAX_FACTORS):
        if node.name().startswith("CompiledFunction"):
            return math.nan
        power = _FACTORS.get(node.name())
        inputs = [inner for inner, _ in node.next_functions if inner is not None]
        if len(inputs) != 1 or (power is None and node.name() != "ToCopyBackward0"):
            break
        if power is not None:
            saved = node._raw_saved_other
            # Hooks on what is saved are the user's, and may compute.
            number = saved.data if getattr(saved, "unpack_hook", saved) is None else None
            if (
                number is not None
                and number.dim() == 0
                and number.is_cpu
                and number.dtype in _NUMBERS
            ):
                factor *= float(number) ** power
        node = inputs[0]
    return factor
