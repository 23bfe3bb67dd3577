"""Replacing attributes of other people's classes and modules, and putting them back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CellType, ModuleType
from typing import Any

from traincheck_plugin.recorder.problems import Problems

_ABSENT = object()


class Patches:
    """Attributes that were replaced, in order; `undo` restores them in reverse."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self._functions: dict[int, tuple[Any, Any]] = {}

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace attribute *name* of *owner* itself (never an inherited one) by *value*."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._undo.append((owner, name, before, value))

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace attribute *name* of *owner* by ``make(attribute)``."""
        self.set(owner, name, make(vars(owner)[name]))

    def everywhere(self, replacements: dict[Any, Any]) -> None:
        """Replace functions in the namespace of every loaded module that holds them.

        ``from torch.nn.utils import clip_grad_norm_`` made a reference of its own in the user's
        module: replacing the attribute in torch alone would miss it.
        """
        by_id = {id(old): (old, new) for old, new in replacements.items()}
        self._functions.update({id(new): (new, old) for old, new in replacements.items()})
        for module in _modules():
            for name, value in list(vars(module).items()):
                found = by_id.get(id(value))
                if found is not None and found[0] is value:
                    self.set(module, name, found[1])

    def undo(self) -> None:
        """Put everything back; what somebody else replaced meanwhile is left alone and noted."""
        while self._undo:
            owner, name, before, ours = self._undo.pop()
            present = vars(owner).get(name, _ABSENT)
            if present is not ours:
                # What was put around ours meanwhile (torch._dynamo does so with manual_seed when
                # it is imported, and with what makes modules) passes through it: harmless.
                if present is not before and not _is_around(present, ours):
                    label = getattr(owner, "__qualname__", getattr(owner, "__name__", owner))
                    self._problems.note(
                        f"{label}.{name} was replaced during the recording and is left as it is"
                    )
                continue
            with self._problems:
                if before is _ABSENT:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)
        if self._functions:
            self._restore_late_imports()

    def _restore_late_imports(self) -> None:
        """Replace our functions in modules that imported them during the recording."""
        for module in _modules():
            for name, value in list(vars(module).items()):
                found = self._functions.get(id(value))
                if found is not None and found[0] is value:
                    setattr(module, name, found[1])
        self._functions.clear()


def _modules() -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]


def _is_around(outer: Any, inner: Any) -> bool:
    """Return whether *outer* wraps *inner*, and says so or has it in its closure."""
    while outer is not None:
        cells = getattr(outer, "__closure__", None) or ()
        if any(_content(cell) is inner for cell in cells):
            return True
        outer = getattr(outer, "__wrapped__", None)
        if outer is inner:
            return True
    return False


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None
