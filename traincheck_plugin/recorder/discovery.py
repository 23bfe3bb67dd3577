"""Finding the models that own parameters.

An optimizer knows its parameters but not their names, and the first forward may be that of a part
of a model. So when an optimizer or a module comes up that belongs to no tracked model, the
outermost of the modules alive that own it are tracked: however they are held (a local,
``self.model``, a closure), and before they ever ran. The first time the heap is searched for them,
which takes some tenths of a second. A search for hyper-parameters makes hundreds of models, so
those that are made later tell of themselves.

The stack is not searched instead, since reading ``frame.f_locals`` leaves a snapshot behind that
keeps tensors alive (before Python 3.13) and refreshes what the user's code got from ``locals()``.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
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


class ModulesAlive:
    """Which modules there are, each held weakly."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[Module]] | None = None
        self._max_references = 0

    def __call__(self) -> list[Module]:
        """Return all that are alive and built, each once."""
        if self._references is None:
            found = _search_heap()
        else:
            found = [module for one in self._references if (module := one()) is not None]
        built = [module for module in found if "_modules" in module.__dict__]
        # A module may have told of itself twice: its classes call the constructor as they like.
        alive = list({id(module): module for module in built}.values())
        self._keep(found)
        return alive

    def note(self, module: Module) -> None:
        """Note a module that was just made; before the first search, that will find it."""
        if self._references is not None:
            self._references.append(weakref.ref(module))
            if len(self._references) > self._max_references:
                self._keep([m for one in self._references if (m := one()) is not None])

    def _keep(self, modules: list[Module]) -> None:
        self._references = list(map(weakref.ref, modules))
        self._max_references = 2 * len(modules) + 1000

    def forget(self) -> None:
        """Hold nothing, and search anew when asked again."""
        self._references = None


class Garbage:
    """Models that nobody has any more, and that are alive until the garbage collector comes."""

    def __init__(self) -> None:
        self._num_to_skip = self._num_skipped = 0

    def collect(self, suspects: Sequence[weakref.ref[Module]]) -> None:
        """Collect what may be garbage.

        That takes some tenths of a second, the more the more is alive. Where it frees none of the
        suspects, because models are in no cycles and die at once, it is done ever more seldom.
        """
        if self._num_skipped < self._num_to_skip:
            self._num_skipped += 1
            return
        gc.collect()
        is_needed = any(one() is None for one in suspects)
        self._num_skipped = 0
        self._num_to_skip = 0 if is_needed else 2 * self._num_to_skip + 1


def models_of(
    parameters: Iterable[Any],
    modules: Iterable[Module],
    names: tuple[str, ...],
    alive: Sequence[Module],
) -> list[Module]:
    """Return the outermost modules that hold any of *parameters* or contain *modules*.

    Args:
        parameters: tensors to look for.
        modules: parts to look for.
        names: if not empty, only what a variable or attribute of one of these names holds counts.
        alive: all modules.
    """
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


def copies_of(
    models: Iterable[Module], held: set[int], alive: Iterable[Module]
) -> list[tuple[Module, Module]]:
    """Return each of *models* that is trained with each copy of it: an average, say, or a target.

    A copy has the class of the model and parameters of the same names and shapes.

    Args:
        models: the tracked ones.
        held: ids of the parameters that optimizers hold: a copy has none of them.
        alive: all modules.
    """
    trained: dict[type, list[tuple[Module, dict[str, torch.Size]]]] = {}
    for model in models:
        parameters = dict(model.named_parameters())
        if any(id(p) in held for p in parameters.values()):
            shapes = {name: p.shape for name, p in parameters.items()}
            trained.setdefault(type(model), []).append((model, shapes))
    found = []
    for module in alive:
        for model, shapes in trained.get(type(module), ()):
            parameters = dict(module.named_parameters())
            if (
                module is not model
                and {name: p.shape for name, p in parameters.items()} == shapes
                and not any(id(p) in held for p in parameters.values())
            ):
                found.append((model, module))
    return found


def _search_heap() -> list[Module]:
    kinds: dict[type, bool] = {}
    found = []
    for thing in gc.get_objects():
        kind = type(thing)
        is_module = kinds.get(kind)
        if is_module is None:
            is_module = kinds[kind] = issubclass(kind, Module)
        if is_module:
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
