"""Backward passes: through a tensor, through `torch.autograd`, and gradients on request."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from traincheck_plugin.recorder.loss_graph import constant_factor, formula, was_passed
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced

MAX_FORMULAS = 256
"""Formulas that are told: a loss that has a new one in each step would fill the catalog."""


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
    formulas: set[str] = set()

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
                note=partial(_with_loss, tape, formulas, args, kwargs) if counts else None,
            )

        return wrapper

    return make


def _with_loss(
    tape: Tape,
    formulas: set[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    arguments: int,
) -> int:
    """Return the code *arguments* with what there is to tell of the loss.

    ``factor`` is the constant that it was multiplied by, if any; ``again`` is there where an
    earlier backward went through it, too; ``formula`` is how it is computed. One that is given
    gradients has no loss.
    """
    loss = args[0] if args else None
    given = (*args[1:2], kwargs.get("gradient"), kwargs.get("grad_tensors"))
    if not isinstance(loss, torch.Tensor) or loss.grad_fn is None:
        return arguments
    factor, node = constant_factor(loss.grad_fn)
    extended = tape.signatures.extended
    if factor != 1.0:
        arguments = extended(arguments, "factor", repr(factor))
    if all(gradient is None for gradient in given):
        if was_passed(node):
            arguments = extended(arguments, "again", "yes")
        computed = formula(node)
        if computed and (computed in formulas or len(formulas) < MAX_FORMULAS):
            formulas.add(computed)
            arguments = extended(arguments, "formula", computed)
    return arguments
