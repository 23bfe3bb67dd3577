"""Checkpoints: what is saved and loaded."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.recorder.tape import Tape

Module = torch.nn.Module
Optimizer = torch.optim.Optimizer


class CheckpointsProbe:
    """Observes `torch.save`, `torch.load` and the state dicts of modules and optimizers."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch the methods and replace the functions in every namespace."""
        for name in ("state_dict", "load_state_dict"):
            code = tape.apis.function(
                f"torch.nn.Module.{name}", "checkpoint", f"torch.nn.modules.module.Module.{name}"
            )
            patches.set(Module, name, recorded(tape, vars(Module)[name], "checkpoint", code))
            method = recorded(
                tape,
                vars(Optimizer)[name],
                "checkpoint",
                partial(_optimizer_api, tape, name),
                optimizer=_itself,
            )
            patches.set(Optimizer, name, method)
        replacements = {}
        for function in (torch.save, torch.load):
            name = function.__name__
            api = tape.apis.function(f"torch.{name}", "checkpoint", f"torch.serialization.{name}")
            replacements[function] = recorded(tape, function, "checkpoint", api, is_method=False)
        patches.everywhere(replacements)

    def detach(self) -> None:
        """Nothing beyond the patches."""


def _optimizer_api(tape: Tape, name: str, optimizer: Any) -> int:
    return tape.apis.method(type(optimizer), name, "checkpoint", Optimizer)


def _itself(optimizer: Any, *_: Any) -> Any:
    return inner_optimizer(optimizer)
