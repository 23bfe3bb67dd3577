"""Checkpoints: what is saved and loaded."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

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

    def __init__(self) -> None:
        # Of each tensor of a state dict of a module: in which training step it was made, how often
        # it had been written to, and how often something had been loaded into the module.
        self._made = WeakIdKeyDictionary()
        self._num_loads = WeakIdKeyDictionary()

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
                outcome=partial(self._loaded if is_load else self._note, tape),
            )
            patches.set(Module, name, method)
            method = recorded(
                tape,
                vars(Optimizer)[name],
                "checkpoint",
                partial(_optimizer_api, tape, name),
                optimizer=_itself,
                outcome=partial(_loaded_optimizer, tape) if is_load else None,
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

    def _note(self, tape: Tape, args: Any, kwargs: Any, result: Any) -> int:
        """Note that a state dict is made."""
        if isinstance(result, Mapping):
            num_loads = self._num_loads.get(args[0], 0)
            for value in result.values():
                if isinstance(value, torch.Tensor):
                    self._made[value] = tape.tracker.step, _version(value), num_loads
        return NONE

    def _loaded(
        self, tape: Tape, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> int:
        """Return the code of what a load into a module came to.

        Besides how much was loaded that is whether all of it was the module's own memory, and
        whether tensors are one in the state dict that are two in the module.
        """
        state = _state_of(args, kwargs)
        self._num_loads[args[0]] = self._num_loads.get(args[0], 0) + 1
        own = "" if _assigns(args, kwargs) else self._own(args[0], state, tape.tracker.step)
        untied = "yes" if _is_untied(args[0], state) else ""
        loaded = _loaded_of_module(args[0], state, result)
        return _outcome(tape, loaded, own=own, untied=untied)

    def _own(self, module: Any, state: Mapping[str, Any], step: int) -> str:
        """Return how all that a load finds was the module's memory; "" where it was not.

        ``kept`` is a state dict of an earlier training step, ``unchanged`` one of this step that
        nothing was written to, and ``loaded`` one that was only written to by loads into the
        module: a checkpoint may be read into a state dict that is made for it.
        """
        is_kept = False
        since = set()
        # A load writes once for each name: a tied tensor has several.
        num_writes: Counter[int] = Counter()
        num_names: Counter[int] = Counter()
        for name, tensor in itertools.chain(
            module.named_parameters(remove_duplicate=False),
            module.named_buffers(remove_duplicate=False),
        ):
            given = state.get(name)
            if isinstance(given, torch.Tensor) and given.numel():
                if not _is_same_memory(given, tensor):
                    return ""
                made, version, num_loads = self._made.get(given, (step, 0, 0))
                is_kept = is_kept or made < step
                num_writes[given.data_ptr()] = _version(given) - version
                num_names[given.data_ptr()] += 1
                since.add(self._num_loads[module] - num_loads)
        if is_kept:
            return "kept"
        if len(since) != 1:
            return ""
        (number,) = since
        if any(num_writes[place] != number * names for place, names in num_names.items()):
            return ""
        return "unchanged" if number == 1 else "loaded"


def _optimizer_api(tape: Tape, name: str, optimizer: Any) -> int:
    return tape.apis.method(type(optimizer), name, "checkpoint", Optimizer)


def _itself(optimizer: Any, *_: Any) -> Any:
    return inner_optimizer(optimizer)


def _state_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    state = args[1] if len(args) > 1 else kwargs.get("state_dict")
    return state if isinstance(state, Mapping) else {}


def _loaded_optimizer(
    tape: Tape, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> int:
    """Return the code of whether there was any state of parameters to load into an optimizer."""
    found = _state_of(args, kwargs).get("state")
    return _outcome(tape, "" if found is None else "all" if found else "none")


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was written to in place; 0 where torch does not count it."""
    return 0 if tensor.is_inference() else tensor._version


def _outcome(tape: Tape, loaded: str, **facts: str) -> int:
    if not loaded:
        return NONE
    items = [Item(path="loaded", type="str", value=loaded)]
    items += [Item(path=name, type="str", value=told) for name, told in facts.items() if told]
    return tape.catalog.signatures.code(encode_signature(items))


def _assigns(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a load makes what it is given the module's own."""
    return bool(args[3] if len(args) > 3 else kwargs.get("assign"))


def _is_same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    # Tensors that stand for others have no memory, or say that it is at 0.
    return (
        {type(first), type(second)} <= PLAIN
        and first.device == second.device
        and first.data_ptr() == second.data_ptr() != 0
    )


def _is_untied(module: Any, state: Mapping[str, Any]) -> bool:
    """Return whether parameters that share their memory in *state* are apart in *module*.

    One tensor that *state* has under two names is no tie: parts are initialised alike so. Buffers
    may share a constant, and no longer do on another device.
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    names: dict[tuple[Any, ...], str] = {}
    for name, tensor in state.items():
        if name not in own or type(tensor) not in PLAIN or not tensor.numel():
            continue
        if tensor.layout is not torch.strided or not tensor.data_ptr():
            continue
        where = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        first = names.setdefault(where, name)
        is_tied = first != name and state[first] is not tensor
        known = {type(own[first]), type(own[name])} <= PLAIN
        if is_tied and known and not _is_same_memory(own[first], own[name]):
            return True
    return False


def _loaded_of_module(module: Any, state: Mapping[str, Any], result: Any) -> str:
    """Return whether ``all``, ``some`` or ``none`` of *module* was loaded; "" where not known."""
    missing = getattr(result, "missing_keys", None)
    unexpected = getattr(result, "unexpected_keys", None)
    if missing is None or unexpected is None or not state:
        return ""
    if not missing and not unexpected:
        return "all"
    return "some" if len(state) > len(unexpected) else "none"
