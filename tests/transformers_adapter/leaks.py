"""What is installed in the process and on a trainer while it is watched."""

from __future__ import annotations

import sys
import threading
import types
import warnings

import torch
from transformers.trainer import Trainer

from traincheck_plugin.recorder.recorder import is_recording

FRAMEWORKS = ("torch", "transformers", "accelerate", "numpy", "random", "tests")
OURS = ("traincheck_plugin/", "traincheck_transformers/")


def _is_ours(value):
    return type(value) is types.FunctionType and any(
        name in value.__code__.co_filename for name in OURS
    )


def installed(trainer: Trainer):
    """Return where functions and hooks of ours stand, and what else a run must not leave behind."""
    found = set()
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType):
            continue
        if module.__name__.partition(".")[0] not in FRAMEWORKS:
            continue
        for name, value in list(vars(module).items()):
            if _is_ours(value) and not value.__module__.startswith("traincheck"):
                found.add(f"{module.__name__}.{name}")
            elif issubclass(type(value), type) and value.__module__.startswith(FRAMEWORKS):
                found |= {
                    f"{module.__name__}.{name}.{inner}"
                    for inner, function in list(vars(value).items())
                    if _is_ours(function)
                }
    for holder in (trainer, trainer.accelerator, trainer.callback_handler, trainer.optimizer):
        found |= {
            f"{type(holder).__name__}().{name}"
            for name, value in vars(holder or object).items()
            if _is_ours(value)
        }
    hooks, optimizers = torch.nn.modules.module, sys.modules["torch.optim.optimizer"]
    return found, [
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
        len(optimizers._global_optimizer_pre_hooks),
        len(optimizers._global_optimizer_post_hooks),
        torch._C._len_torch_function_stack(),
        list(warnings.filters),
        {thread.name for thread in threading.enumerate()},
        is_recording(),
    ]
