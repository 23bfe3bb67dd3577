"""Modules that take one axis of what they are given for a sequence, and another for its samples."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from traincheck_plugin.recorder.naming import class_path

Module = torch.nn.Module

MAX_SEQUENCES = 64
"""What modules are given in one forward of the outermost one, and is noted."""

_WITHOUT_SAMPLES = (torch.nn.RNNBase, torch.nn.MultiheadAttention)
"""Modules that take what has two dimensions for a single sequence."""


class Sequences(NamedTuple):
    """What a module was given.

    Attributes:
        name: of the module in the outermost one.
        type: its class.
        length: of the sequences.
        number: of them; 0 where there is one without an axis for others.
    """

    name: str
    type: str
    length: int
    number: int


class SequenceReader:
    """Notes the axes of what is given to modules that have the attribute ``batch_first``.

    Attributes:
        modules: of the outermost one that runs: the name and the class of each, by its id.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Module, dict[int, tuple[str, str]]]
        self._known = weakref.WeakKeyDictionary()
        self._noted: dict[Sequences, None] = {}
        self.modules: dict[int, tuple[str, str]] = {}

    def enter(self, root: Module) -> None:
        """Prepare for a forward of *root*."""
        self._noted.clear()
        modules = self._known.get(root)
        if modules is None:
            modules = self._known[root] = {
                id(part): (name, class_path(type(part)))
                for name, part in root.named_modules()
                if isinstance(getattr(part, "batch_first", None), bool)
            }
        self.modules = modules

    def note(self, module: Any, args: tuple[Any, ...]) -> None:
        """Note what one of these modules is given."""
        sizes = _sizes(module, args[0]) if args else None
        if sizes is not None and len(self._noted) < MAX_SEQUENCES:
            self._noted[Sequences(*self.modules[id(module)], *sizes)] = None

    def take(self) -> list[Sequences]:
        """Return what was noted in the forward that ends."""
        noted = list(self._noted)
        self._noted.clear()
        return noted


def _sizes(module: Any, values: Any) -> tuple[int, int] | None:
    """Return the length and the number of the sequences in *values*; None where it has none."""
    if not isinstance(values, torch.Tensor) or values.is_nested:
        return None
    if values.dim() == 2 and isinstance(module, _WITHOUT_SAMPLES):
        return len(values), 0
    if values.dim() < 3:
        return None
    first, second = values.shape[:2]
    return (second, first) if module.batch_first else (first, second)
