"""Public names of classes, methods and objects."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from traincheck_plugin.catalog import Catalog, Interner
from traincheck_plugin.vocabulary import Api, Role


def class_path(cls: type) -> str:
    """Return the path under which users know *cls*: ``torch.optim.Adam``."""
    module, name = cls.__module__, cls.__qualname__
    if module == "builtins":
        return name
    parts = module.split(".")
    if "<locals>" in name or len(parts) == 1:
        return f"{module}.{name}"
    prefixes = [".".join(parts[: n + 1]) for n in range(len(parts))]
    if parts[0] == "torch":
        # torch exports a few classes twice (torch.GradScaler, torch.amp.GradScaler): the
        # subpackage is the documented place, the top level only where there is no other.
        prefixes = [*prefixes[1:-1], prefixes[0], prefixes[-1]]
    for prefix in prefixes:
        if any(part.startswith("_") for part in prefix.split(".")) and prefix != module:
            continue
        holder = sys.modules.get(prefix)
        # vars() and not getattr(): lazy modules import on attribute access.
        if holder is not None and vars(holder).get(name) is cls:
            return f"{prefix}.{name}"
    return f"{module}.{name}"


def class_paths(cls: type) -> tuple[str, ...]:
    """Return the public path of *cls* and the path where it is defined."""
    return tuple(dict.fromkeys((class_path(cls), f"{cls.__module__}.{cls.__qualname__}")))


def method_names(cls: type, method: str, root: type) -> tuple[str, ...]:
    """Return every name of *method* of *cls*, most specific first, up to its base *root*."""
    bases = [base for base in cls.__mro__ if issubclass(base, root)]
    paths = (f"{path}.{method}" for base in bases for path in class_paths(base))
    return tuple(dict.fromkeys(paths))


class Apis:
    """Gives functions and methods their codes."""

    def __init__(self, interner: Interner[Api]) -> None:
        self._interner = interner
        self._codes: dict[tuple[type | None, str], int] = {}

    def function(self, name: str, role: Role, *aliases: str) -> int:
        """Return the code of a function by its public name."""
        return self._code(None, name, role, lambda: (name, *aliases))

    def method(self, cls: type, name: str, role: Role, root: type) -> int:
        """Return the code of a method of *cls*, which answers to its bases' names up to *root*."""
        return self._code(cls, name, role, lambda: method_names(cls, name, root))

    def _code(
        self, cls: type | None, name: str, role: Role, names: Callable[[], tuple[str, ...]]
    ) -> int:
        code = self._codes.get((cls, name))
        if code is None:
            all_names = tuple(dict.fromkeys(names()))
            api = Api(name=all_names[0], names=all_names, role=role)
            code = self._codes[cls, name] = self._interner.code(api)
        return code


class Labels:
    """Gives each object a label such as ``torch.optim.Adam#0``, holding it weakly."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._counts: Counter[str] = Counter()

    def code(self, subject: Any) -> int:
        """Return the code of the label of *subject* in the catalog's objects."""
        key = id(subject)
        known = self._known.get(key)
        if known is not None and known[0]() is subject:
            return known[1]
        path = class_path(type(subject))
        code = self._catalog.objects.code(f"{path}#{self._counts[path]}")
        self._counts[path] += 1
        self._known[key] = (weakref.ref(subject, self._forget(key)), code)
        return code

    def _forget(self, key: int) -> Callable[[Any], None]:
        known = self._known

        def forget(_: Any) -> None:
            known.pop(key, None)

        return forget

    def text(self, subject: Any) -> str:
        """Return the label of *subject*."""
        return self._catalog.objects[self.code(subject)]
