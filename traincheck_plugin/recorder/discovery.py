"""Finding the models that own parameters.

An optimizer knows its parameters but not their names, and the first forward may be that of a part
of a model. So when an optimizer or a module comes up that belongs to no tracked model, the heap is
searched once for modules and the outermost that own it are tracked: however they are held (a
local, ``self.model``, a closure), and before they ever ran. That takes some hundredths of a
second, and happens a few times in a run.

The stack is not searched instead, since reading ``frame.f_locals`` leaves a snapshot behind that
keeps tensors alive (before Python 3.13) and refreshes what the user's code got from ``locals()``.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import torch

Module = torch.nn.Module

_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_forward_module",
    "AveragedModel": "module",
}
_OPTIMIZED = 0x0001  # CO_OPTIMIZED: the code of a function, whose locals are no dict


def unwrapped(module: Module) -> Module:
    """Return the user's module inside wrappers that only distribute or compile it.

    So variables keep the names they have without the wrapper, or without the average.
    """
    while True:
        attribute = _WRAPPERS.get(type(module).__name__)
        inner = module._modules.get(attribute) if attribute else None
        if inner is None:
            return module
        module = inner


def models_of(
    parameters: Iterable[Any], modules: Iterable[Module], names: tuple[str, ...]
) -> list[Module]:
    """Return the outermost modules alive that hold any of *parameters* or contain *modules*.

    Args:
        parameters: tensors to look for.
        modules: parts to look for.
        names: if not empty, only what a variable or attribute of one of these names holds counts.
    """
    alive = _modules_alive()
    parents: dict[int, list[Module]] = {}
    for module in alive:
        for child in module._modules.values():
            parents.setdefault(id(child), []).append(module)
    wanted = {id(parameter) for parameter in parameters}
    parts = {id(module) for module in modules}
    found = {
        id(module): module
        for module in alive
        if id(module) in parts or any(id(p) in wanted for p in module._parameters.values())
    }
    waiting = list(found.values())
    while waiting:
        for parent in parents.get(id(waiting.pop()), ()):
            if id(parent) not in found:
                found[id(parent)] = parent
                waiting.append(parent)
    if names:
        bound = {id(module) for module in _bound_to(names, found)}
        found = {key: module for key, module in found.items() if key in bound}
    inner = {id(m) for module in found.values() for m in module.modules() if m is not module}
    outermost = [unwrapped(module) for key, module in found.items() if key not in inner]
    return list({id(module): module for module in outermost}.values())


def copies_of(models: Iterable[Module], held: set[int]) -> list[tuple[Module, Module]]:
    """Return each of *models* that is trained with each copy of it: an average, say, or a target.

    A copy has the class of the model and parameters of the same names and shapes.

    Args:
        models: the tracked ones.
        held: ids of the parameters that optimizers hold: a copy has none of them.
    """
    trained: dict[type, list[tuple[Module, dict[str, torch.Size]]]] = {}
    for model in models:
        parameters = dict(model.named_parameters())
        if any(id(p) in held for p in parameters.values()):
            shapes = {name: p.shape for name, p in parameters.items()}
            trained.setdefault(type(model), []).append((model, shapes))
    found = []
    for module in _modules_alive():
        for model, shapes in trained.get(type(module), ()):
            parameters = dict(module.named_parameters())
            if (
                module is not model
                and {name: p.shape for name, p in parameters.items()} == shapes
                and not any(id(p) in held for p in parameters.values())
            ):
                found.append((model, module))
    return found


def _modules_alive() -> list[Module]:
    kinds: dict[type, bool] = {}
    found = []
    for thing in gc.get_objects():
        kind = type(thing)
        is_module = kinds.get(kind)
        if is_module is None:
            is_module = kinds[kind] = issubclass(kind, Module)
        if is_module and "_modules" in thing.__dict__:
            found.append(thing)
    return found


def _bound_to(names: tuple[str, ...], modules: dict[int, Module]) -> Iterator[Module]:
    """Yield those of *modules* that a local, global or attribute of one of *names* holds."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
        for name in local.intersection(names):
            module = modules.get(id(_read_local(frame, name)))
            if module is not None:
                yield module
        frame = frame.f_back
    for module in modules.values():
        for holder in gc.get_referrers(module):
            # Attributes of an object that has no dict yet are referred to by the object itself.
            values = holder if type(holder) is dict else getattr(holder, "__dict__", None)
            if type(values) is dict and any(values.get(name) is module for name in names):
                yield module
                break


def _read_local(frame: FrameType, name: str) -> Any:
    local = frame.f_locals
    value = local.get(name)
    # The snapshot is emptied unless somebody else holds it too: then there are more references
    # than the frame's, ours and getrefcount's. From Python 3.13 on it is no dict and no snapshot.
    if frame.f_code.co_flags & _OPTIMIZED and type(local) is dict and sys.getrefcount(local) <= 3:
        local.clear()
    return value
