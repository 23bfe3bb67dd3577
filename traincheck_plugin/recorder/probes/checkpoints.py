"""Checkpoints: what is saved and loaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from traincheck_plugin.recorder.fingerprint import PLAIN
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.vocabulary import NONE, Item, encode_signature

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
            is_load = name == "load_state_dict"
            method = recorded(
                tape,
                vars(Module)[name],
                "checkpoint",
                code,
                outcome=partial(_outcome, tape, _loaded_of_module) if is_load else None,
            )
            patches.set(Module, name, method)
            method = recorded(
                tape,
                vars(Optimizer)[name],
                "checkpoint",
                partial(_optimizer_api, tape, name),
                optimizer=_itself,
                outcome=partial(_outcome, tape, _loaded_of_optimizer) if is_load else None,
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


def _outcome(
    tape: Tape,
    loaded: Callable[[Any, Any, Any], str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Any,
) -> int:
    """Return the code of what a load came to: how much of it was loaded."""
    state = args[1] if len(args) > 1 else kwargs.get("state_dict")
    if not isinstance(state, Mapping):
        return NONE
    value = loaded(args[0], state, result)
    if not value:
        return NONE
    items = [Item(path="loaded", type="str", value=value)]
    if isinstance(args[0], Module) and not _assigns(args, kwargs) and _is_own(args[0], state):
        items.append(Item(path="own", type="str", value="yes"))
    return tape.catalog.signatures.code(encode_signature(items))


def _assigns(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a load makes what it is given the module's own."""
    return bool(args[3] if len(args) > 3 else kwargs.get("assign"))


def _is_own(module: Any, state: Mapping[str, Any]) -> bool:
    """Return whether all that a load finds for *module* is in its memory already."""
    num_own = 0
    for name, tensor in itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        given = state.get(name)
        if isinstance(given, torch.Tensor) and given.numel():
            if given.device != tensor.device or not _is_same_memory(given, tensor):
                return False
            num_own += 1
    return num_own > 0


def _is_same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    # Tensors that stand for others have no memory, or say that it is at 0.
    return {type(first), type(second)} <= PLAIN and first.data_ptr() == second.data_ptr() != 0


def _loaded_of_module(module: Any, state: Mapping[str, Any], result: Any) -> str:
    """Return whether ``all``, ``some`` or ``none`` of *module* was loaded; "" where not known."""
    missing = getattr(result, "missing_keys", None)
    unexpected = getattr(result, "unexpected_keys", None)
    if missing is None or unexpected is None or not state:
        return ""
    if not missing and not unexpected:
        return "all"
    return "some" if len(state) > len(unexpected) else "none"


def _loaded_of_optimizer(optimizer: Any, state: Mapping[str, Any], result: Any) -> str:
    """Return whether there was any state of parameters to load into *optimizer*."""
    found = state.get("state")
    return "" if found is None else "all" if found else "none"
