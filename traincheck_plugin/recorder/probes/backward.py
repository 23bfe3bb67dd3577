"""Backward passes: through a tensor, through `torch.autograd`, and gradients on request."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch

from traincheck_plugin.events import Frame
from traincheck_plugin.recorder.accumulation import micro_batches
from traincheck_plugin.recorder.calls import OpenCall
from traincheck_plugin.recorder.connections import connections
from traincheck_plugin.recorder.layers import layers
from traincheck_plugin.recorder.loss_graph import (
    Operations,
    constant_factor,
    formula,
    operations,
    was_passed,
)
from traincheck_plugin.recorder.operation_settings import nodes_of, settings
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced

MAX_TEXTS = 256
"""Formulas that are told, and as many settings and draws: a loss that has new ones in each step
would fill the catalog."""

MAX_CONNECTED = 32
"""Steps with a loss of one formula of which the connections are told: it takes a while."""


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
    texts = _Texts()

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            stack = tape.threads.stack
            if is_traced() or not tape.is_listening or (stack and stack[-1].role == "backward"):
                return function(*args, **kwargs)
            loss = _Loss(tape, texts, args, kwargs, sys._getframe(1)) if counts else None
            result = tape.around(
                "backward",
                api,
                function,
                args,
                kwargs,
                counts=counts,
                is_summarised=True,
                note=None if loss is None else loss.note,
                frames=None if loss is None else loss.frames,
            )
            if not counts and tape.cuts.is_used and tape.is_training_thread():
                # What is computed of gradients without a graph has none.
                tape.silencer.mute()
                with tape.problems:
                    tape.cuts.observe(torch.autograd.grad, args, kwargs, result)
                tape.silencer.unmute()
            return result

        return wrapper

    return make


class _Texts:
    """Keeps account of what was told of losses."""

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}
        self._steps: dict[str, set[int]] = {}

    def admits(self, path: str, text: str) -> bool:
        """Return whether there is something to tell, and not too much was told already."""
        known = self._known.setdefault(path, set())
        if not text or (text not in known and len(known) == MAX_TEXTS):
            return False
        known.add(text)
        return True

    def is_early(self, formula: str, step: int) -> bool:
        """Return whether a training step is one of the first with a loss of a formula."""
        if formula not in self._known["formula"]:
            return False
        steps = self._steps.setdefault(formula, set())
        if len(steps) < MAX_CONNECTED:
            steps.add(step)
        return step in steps


class _Loss:
    """What a backward begins with, if it is one tensor with a graph.

    Args:
        tape: of the recording.
        texts: that were told already.
        args, kwargs: of the call.
        caller: frame of what calls.
    """

    def __init__(
        self,
        tape: Tape,
        texts: _Texts,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        caller: FrameType,
    ) -> None:
        self._tape = tape
        self._caller = caller
        self._texts = texts
        loss = args[0] if args else None
        given = (*args[1:2], kwargs.get("gradient"), kwargs.get("grad_tensors"))
        self._loss = loss if isinstance(loss, torch.Tensor) else None
        self._node = loss.grad_fn if isinstance(loss, torch.Tensor) else None
        # One that is given gradients is no loss.
        self._is_loss = all(gradient is None for gradient in given)
        self._operations: Operations = {}

    def note(self, arguments: int) -> int:
        """Return the code *arguments* with what there is to tell of the loss.

        ``factor`` is the constant that it was multiplied by, if any; ``accumulates`` over how many
        micro-batches a framework spreads the step that it is for, where one tells; ``again`` is
        there where an earlier backward went through it, too; ``formula`` is how it is computed, and
        ``settings`` are those of all operations that do, ``layers`` those among them that have
        weights, and ``connections`` what each of these is given; ``draws`` tells where went what
        was drawn at random; ``cuts`` are the functions that took the gradients from terms of it.
        """
        loss, self._loss = self._loss, None
        if loss is None or self._node is None:
            return arguments
        factor, node = constant_factor(self._node)
        if factor != 1.0:
            arguments = self._tape.signatures.extended(arguments, "factor", repr(factor))
        number = micro_batches(self._caller)
        if number:
            arguments = self._tape.signatures.extended(arguments, "accumulates", str(number))
        if self._is_loss:
            if was_passed(node):
                arguments = self._tape.signatures.extended(arguments, "again", "yes")
            self._operations = operations(node)
            told = formula(self._operations)
            arguments = self._told(arguments, "formula", told)
            nodes = nodes_of(node)
            if nodes is not None:
                names = self._tape.variables.structure(is_fresh=False).names
                set_to = settings(nodes, self._tape.arguments.padded)
                arguments = self._told(arguments, "settings", set_to)
                arguments = self._told(arguments, "layers", layers(nodes, names))
                if self._texts.is_early(told, self._tape.tracker.step):
                    told = connections(nodes, names)
                    arguments = self._told(arguments, "connections", told)
            arguments = self._told(arguments, "cuts", self._tape.cuts.take(loss))
            draws, derivations = self._tape.draws.take(), self._tape.derivations.take()
            if nodes is not None:
                arguments = self._told(arguments, "draws", draws)
                arguments = self._told(arguments, "derivations", derivations)
        return arguments

    def _told(self, arguments: int, path: str, text: str) -> int:
        if not self._texts.admits(path, text):
            return arguments
        return self._tape.signatures.extended(arguments, path, text)

    def frames(self, call: OpenCall) -> list[Frame]:
        """Return the frames about what the loss compares predictions with."""
        known, self._operations = self._operations, {}
        return self._tape.arguments.of_loss(call, known)
