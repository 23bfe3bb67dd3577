"""Modules that a model has under several names."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch

from traincheck_plugin.recorder.naming import class_path

Module = torch.nn.Module

MAX_ALIASES = 64
"""Further names of modules that are told of one model."""


class Alias(NamedTuple):
    """A further name of a module that has parameters.

    Attributes:
        name: in the outermost module.
        type: class of the module.
    """

    name: str
    type: str


class AliasReader:
    """Finds the modules with several names, once for each outermost module."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Module, list[Alias]] = weakref.WeakKeyDictionary()

    def of(self, root: Module) -> list[Alias]:
        """Return the further names of modules in *root*, without those of what is in these."""
        aliases = self._known.get(root)
        if aliases is None:
            aliases = self._known[root] = _aliases(root)
        return aliases


def _aliases(root: Module) -> list[Alias]:
    found: list[Alias] = []
    seen: set[int] = set()
    for name, module in root.named_modules(remove_duplicate=False):
        if id(module) not in seen:
            seen.add(id(module))
        elif next(module.parameters(), None) is not None:
            within = any(name.startswith(f"{alias.name}.") for alias in found)
            if not within and len(found) < MAX_ALIASES:
                found.append(Alias(name, class_path(type(module))))
    return found
