"""Checkpoints: what is saved and loaded."""

from __future__ import annotations

import torch

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.tape import Tape


class CheckpointsProbe:
    """Observes `torch.save`, `torch.load` and the state dicts of modules and optimizers."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the methods and replace the functions in every namespace."""
        for name in ("state_dict", "load_state_dict"):
            code = tape.function_api(
                f"torch.nn.Module.{name}", "checkpoint", f"torch.nn.modules.module.Module.{name}"
            )
            patches.wrap(
                torch.nn.Module,
                name,
                lambda function, code=code: recorded(
                    tape, function, "checkpoint", lambda _: code
                ),
            )
            patches.wrap(
                torch.optim.Optimizer,
                name,
                lambda function, name=name: recorded(
                    tape,
                    function,
                    "checkpoint",
                    lambda optimizer: tape.method_api(
                        type(optimizer), name, "checkpoint", torch.optim.Optimizer
                    ),
                    optimizer=lambda optimizer, *_: optimizer,
                ),
            )
        replacements = {}
        for function in (torch.save, torch.load):
            name = function.__name__
            api = tape.function_api(f"torch.{name}", "checkpoint", f"torch.serialization.{name}")
            replacements[function] = recorded(
                tape, function, "checkpoint", lambda _, api=api: api, is_method=False
            )
        patches.everywhere(replacements)

    def detach(self) -> None:
        """Nothing beyond the patches."""
