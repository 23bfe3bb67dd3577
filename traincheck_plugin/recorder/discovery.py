"""Finding the models that own parameters, through the variables of the running code.

An optimizer knows its parameters but not their names, and a forward may be that of a part. The
models are almost always held by a variable of some function on the stack (``model``, ``self``,
``self.model``) or of its module, so that is where they are looked for: no search of the heap.
Locals are read with `gc.get_referents`, because ``frame.f_locals`` would leave a snapshot behind
that keeps tensors alive.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from types import CellType, FrameType
from typing import Any

import torch

from traincheck_plugin.recorder.sources import is_user_code

Module = torch.nn.Module

_MAX_CONTAINER = 64
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
}


def unwrapped(module: Module) -> Module:
    """Return the user's module inside wrappers that only distribute or compile it.

    So variables keep the names they have without the wrapper.
    """
    while True:
        attribute = _WRAPPERS.get(type(module).__name__)
        inner = module._modules.get(attribute) if attribute else None
        if inner is None:
            return module
        module = inner


def models_holding(parameters: Iterable[Any], names: tuple[str, ...]) -> list[Module]:
    """Return the outermost modules in reach that hold any of *parameters*.

    Args:
        parameters: tensors to look for.
        names: if not empty, only modules bound to one of these names count.
    """
    wanted = {id(parameter) for parameter in parameters}
    return _outermost(
        [
            module
            for module in _reachable(names)
            if any(id(parameter) in wanted for parameter in module.parameters())
        ]
    )


def models_containing(part: Module, names: tuple[str, ...]) -> list[Module]:
    """Return the outermost modules in reach that are or contain *part*."""
    found = [m for m in _reachable(names) if any(inner is part for inner in m.modules())]
    return _outermost(found)


def _outermost(modules: list[Module]) -> list[Module]:
    parts = {id(inner) for m in modules for inner in m.modules() if inner is not m}
    return [module for module in modules if id(module) not in parts]


def _reachable(names: tuple[str, ...]) -> list[Module]:
    found: dict[int, Module] = {}
    frame: FrameType | None = sys._getframe(1)
    namespaces: set[int] = set()
    while frame is not None:
        code = frame.f_code
        if is_user_code(code):
            if id(frame.f_globals) not in namespaces:
                namespaces.add(id(frame.f_globals))
                values = frame.f_globals
                found.update(_modules_in(_bound(values, names) if names else values.values()))
            if names:
                found.update(_modules_in(_named_locals(frame, names)))
            else:
                found.update(_modules_in(gc.get_referents(frame)))
        elif not names:
            # A trainer of a library holds the model too; only its locals are looked at.
            found.update(_modules_in(gc.get_referents(frame)))
        frame = frame.f_back
    return list({id(inner): inner for inner in map(unwrapped, found.values())}.values())


def _modules_in(values: Iterable[Any]) -> Iterator[tuple[int, Module]]:
    for value in map(_content, list(values)):
        kind = type(value)
        if issubclass(kind, Module):
            yield id(value), value
        elif kind in (list, tuple, dict):
            if len(value) <= _MAX_CONTAINER:
                inner = value.values() if kind is dict else value
                yield from ((id(v), v) for v in inner if issubclass(type(v), Module))
        elif kind.__module__ != "builtins" and kind.__flags__ & _HAS_DICT:
            attributes = getattr(value, "__dict__", None)
            if type(attributes) is dict:
                yield from (
                    (id(v), v) for v in list(attributes.values()) if issubclass(type(v), Module)
                )


def _content(value: Any) -> Any:
    """Return what is in the cell of a local that an inner function uses too."""
    try:
        return value.cell_contents if type(value) is CellType else value
    except ValueError:
        return None


_HAS_DICT = 1 << 9  # Py_TPFLAGS_HEAPTYPE: classes made by a class statement


def _bound(values: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    """Return the modules that *values* binds to one of *names*, or an object's attribute does."""
    found = [values[name] for name in names if name in values]
    for value in list(values.values()):
        if type(value).__flags__ & _HAS_DICT and not issubclass(type(value), Module | type):
            attributes = getattr(value, "__dict__", None)
            if type(attributes) is dict:
                found += [attributes[name] for name in names if name in attributes]
    return [value for value in found if issubclass(type(value), Module)]


def _named_locals(frame: FrameType, names: tuple[str, ...]) -> list[Any]:
    code = frame.f_code
    if frame.f_locals is frame.f_globals:
        return []
    local = frame.f_locals
    found = _bound(local, names)
    # Before Python 3.13 the dict is a snapshot that stays with the frame and would keep tensors
    # alive. It is emptied unless somebody else (`locals()` in the user's code) holds it too: then
    # there are more references than the frame's, ours and getrefcount's.
    optimized = code.co_flags & 0x0001
    if optimized and type(local) is dict and sys.getrefcount(local) <= 3:
        local.clear()
    return found
