"""Public functions and methods of packages that the user names."""

from __future__ import annotations

import functools
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced


class PackagesProbe:
    """Records what the packages define and do not mark as private, now loaded or later imported.

    Generators and coroutines are left out: a call of one is over before its work begins.
    """

    def __init__(self, packages: tuple[str, ...], problems: Problems) -> None:
        self._packages = packages
        self._problems = problems
        self._finder = _Finder(self)

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Replace the functions of loaded modules and watch for imports."""
        self._tape = tape
        self._patches = patches
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType) and self.covers(module.__name__):
                self.instrument(module)
        sys.meta_path.insert(0, self._finder)

    def detach(self) -> None:
        """Stop watching for imports."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for package in self._packages:
            if package not in sys.modules:
                self._problems.note(f"package {package!r}, to be recorded, was not imported")

    def covers(self, name: str) -> bool:
        """Return whether module *name* belongs to one of the packages."""
        return any(name == package or name.startswith(f"{package}.") for package in self._packages)

    def instrument(self, module: ModuleType) -> None:
        """Replace the public functions and methods that *module* defines."""
        replacements: dict[Any, Any] = {}
        for name, value in list(vars(module).items()):
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if _is_plain(value):
                replacements[value] = self._recorded(value, f"{module.__name__}.{name}")
            elif isinstance(value, type):
                self._instrument_class(value)
        if replacements:
            self._patches.everywhere(replacements)

    def _instrument_class(self, cls: type) -> None:
        for name, value in list(vars(cls).items()):
            if name.startswith("_"):
                continue
            path = f"{cls.__module__}.{cls.__qualname__}.{name}"
            if _is_plain(value):
                self._patches.set(cls, name, self._recorded(value, path))
            elif isinstance(value, (staticmethod, classmethod)) and _is_plain(value.__func__):
                wrapped = type(value)(self._recorded(value.__func__, path))
                self._patches.set(cls, name, wrapped)

    def _recorded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        tape, problems = self._tape, self._problems
        code = tape.apis.function(name, "instrumented")

        @functools.wraps(function)
        def traincheck_call(*args: Any, **kwargs: Any) -> Any:
            if is_traced() or not tape.is_listening or problems.is_own_code_running:
                return function(*args, **kwargs)
            return tape.around(
                "instrumented",
                code,
                function,
                args,
                kwargs,
                is_summarised=True,
                note=lambda inputs: tape.signatures.numbered(inputs, args, kwargs),
            )

        return traincheck_call


def _is_plain(value: Any) -> bool:
    return type(value) is FunctionType and not (
        inspect.isgeneratorfunction(value)
        or inspect.iscoroutinefunction(value)
        or inspect.isasyncgenfunction(value)
    )


class _Finder:
    """Lets the probe see modules of its packages right after they are first imported."""

    def __init__(self, probe: PackagesProbe) -> None:
        self._probe = probe

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as Python would and have it instrumented once it is executed."""
        if not self._probe.covers(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            tape = self._probe._tape
            with tape.problems:
                if tape.is_active:
                    self._probe.instrument(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
