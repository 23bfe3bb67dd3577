"""Backward passes: through a tensor, through `torch.autograd`, and gradients on request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import is_compiling
from traincheck_plugin.recorder.tape import Tape


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
            if is_compiling() or not tape.is_listening or (stack and stack[-1].role == "backward"):
                return function(*args, **kwargs)
            return tape.around(
                "backward", api, function, args, kwargs, counts=counts, is_summarised=True
            )

        return wrapper

    return make
