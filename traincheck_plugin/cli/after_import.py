"""Calls something as soon as a module has been imported, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


@contextmanager
def after_import(name: str, callback: Callable[[], None]) -> Iterator[None]:
    """Call *callback* when the module called *name* was first imported, within the context.

    It is called before the statement that imports the module returns: names that this statement
    then takes out of the module are as the callback left them. A module that is already there
    calls it at once.
    """
    if name in sys.modules:
        callback()
        yield
        return
    finder = _Finder(name, callback)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds one module through the other finders, and prepares its loader."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self._name = name
        self._callback = callback

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self._prepare(spec.loader)
                return spec
        return None

    def _prepare(self, loader: Loader) -> None:
        # On the instance: the loader of a spec is made for that spec, and stays the one that the
        # module and its resources know.
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._callback()

        loader.exec_module = exec_module  # type: ignore[method-assign]
