"""Gradient scaling and autocast: mixed precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.amp.autocast_mode import autocast

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded, subclasses_overriding
from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced

GradScaler = torch.amp.GradScaler
Optimizer = torch.optim.Optimizer


class ScalingProbe:
    """Observes `GradScaler` and entering `torch.autocast`.

    That a loss is scaled is no call of its own: it is a property of the contexts that follow.

    A step that the scaler skips, because gradients overflowed, shows as a ``GradScaler.step``
    without an ``Optimizer.step`` in it.
    """

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the base classes and what overrides their methods."""
        for name in ("step", "unscale_", "update"):
            for cls in subclasses_overriding(GradScaler, name):
                function = vars(cls)[name]
                method = recorded(
                    tape,
                    _following(tape, function, name),
                    "scaler",
                    partial(_scaler_api, tape, name),
                    optimizer=_optimizer,
                    is_nesting=True,
                )
                patches.set(cls, name, method)
        for cls in subclasses_overriding(GradScaler, "scale"):
            patches.set(cls, "scale", _scaling(tape, vars(cls)["scale"]))
        code = tape.apis.function(
            "torch.amp.autocast.__enter__",
            "autocast",
            "torch.autocast.__enter__",
            "torch.amp.autocast_mode.autocast.__enter__",
        )
        enter = recorded(tape, vars(autocast)["__enter__"], "autocast", code, has_subject=False)
        patches.set(autocast, "__enter__", enter)

    def detach(self) -> None:
        """Nothing beyond the patches."""


def _following(tape: Tape, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the method *name* of a scaler, which tells the tracker what becomes of gradients."""

    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        if tape.is_training_thread() and name == "step":
            # It unscales what is scaled still, or the optimizer does.
            tape.tracker.unscaled()
        result = function(*args, **kwargs)
        if tape.is_training_thread():
            if name == "step":
                tape.tracker.attempted_step()
            elif name == "unscale_":
                tape.tracker.unscaled()
            else:
                tape.tracker.enter_scaling("")
        return result

    return method


def _scaling(tape: Tape, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def scale(scaler: Any, *args: Any, **kwargs: Any) -> Any:
        if tape.is_listening and tape.is_training_thread() and not is_traced():
            with tape.problems:
                is_enabled = scaler.is_enabled()
                tape.tracker.enter_scaling("scaled" if is_enabled else "disabled")
        return function(scaler, *args, **kwargs)

    return scale


def _scaler_api(tape: Tape, name: str, scaler: Any) -> int:
    return tape.apis.method(type(scaler), name, "scaler", GradScaler)


def _optimizer(_: Any, optimizer: Any = None, *__: Any) -> Any:
    return inner_optimizer(optimizer) if isinstance(optimizer, Optimizer) else None
