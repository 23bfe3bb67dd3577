"""Gradient scaling and autocast: mixed precision."""

from __future__ import annotations

from typing import Any

import torch

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded, subclasses_overriding
from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.recorder.tape import Tape

GradScaler = torch.amp.GradScaler
Optimizer = torch.optim.Optimizer


class ScalingProbe:
    """Observes `GradScaler` and entering `torch.autocast`.

    A step that the scaler skips, because gradients overflowed, shows as a ``GradScaler.step``
    without an ``Optimizer.step`` in it.
    """

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the base classes and what overrides their methods."""
        for name in ("step", "unscale_", "update"):

            def api(scaler: Any, name: str = name) -> int:
                return tape.method_api(type(scaler), name, "scaler", GradScaler)

            for cls in subclasses_overriding(GradScaler, name):
                patches.wrap(
                    cls,
                    name,
                    lambda function, api=api: recorded(
                        tape, function, "scaler", api, optimizer=_optimizer, is_nesting=True
                    ),
                )
        autocast = tape.function_api(
            "torch.amp.autocast.__enter__",
            "autocast",
            "torch.autocast.__enter__",
            "torch.amp.autocast_mode.autocast.__enter__",
        )
        patches.wrap(
            torch.amp.autocast_mode.autocast,
            "__enter__",
            lambda function: recorded(
                tape, function, "autocast", lambda _: autocast, has_subject=False
            ),
        )

    def detach(self) -> None:
        """Nothing beyond the patches."""


def _optimizer(_: Any, optimizer: Any = None, *__: Any) -> Any:
    return inner_optimizer(optimizer) if isinstance(optimizer, Optimizer) else None
