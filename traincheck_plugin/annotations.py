"""What a training script says about itself: the stage it is in, and variables worth keeping.

Scripts written for upstream TrainCheck import ``annotate_stage`` and ``META_VARS`` from
``traincheck``; `provide_upstream_names` makes those imports work where it is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

STAGE = "stage"
"""The key of `META_VARS` that names the current stage."""


class MetaVariables(dict[str, Any]):
    """A dict that counts its changes, so that a reader can tell cheaply whether it changed."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 0

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.version += 1

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.version += 1

    def __ior__(self, other: Any) -> MetaVariables:  # type: ignore[override,misc]
        self.update(other)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self.version += 1

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.version += 1
        return super().setdefault(key, default)

    def pop(self, *args: Any) -> Any:
        self.version += 1
        return super().pop(*args)

    def popitem(self) -> tuple[str, Any]:
        self.version += 1
        return super().popitem()

    def clear(self) -> None:
        super().clear()
        self.version += 1


META_VARS = MetaVariables()
"""Variables of the script that become annotations of the context; ``META_VARS["stage"]`` is the
stage itself."""


class annotate_stage:  # noqa: N801  # upstream's name, used like a function
    """Say which stage the run is in, from now on or for the length of a ``with`` block.

    Example:
        >>> annotate_stage("training")  # doctest: +ELLIPSIS
        <...annotate_stage object at ...>
        >>> with annotate_stage("testing"):
        ...     META_VARS["stage"]
        'testing'
        >>> META_VARS.pop("stage")
        'training'
    """

    __slots__ = ("_before",)

    def __init__(self, name: str) -> None:
        self._before = META_VARS.get(STAGE)
        META_VARS[STAGE] = name

    def __enter__(self) -> annotate_stage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is None:
            META_VARS.pop(STAGE, None)
        else:
            META_VARS[STAGE] = self._before


UPSTREAM_MODULES = (
    "traincheck",
    "traincheck.annotate",
    "traincheck.developer",
    "traincheck.instrumentor",
    "traincheck.instrumentor.control",
    "traincheck.instrumentor.tracer",
)


@contextmanager
def provide_upstream_names() -> Iterator[None]:
    """Let ``from traincheck import annotate_stage, META_VARS`` work inside the block.

    An upstream TrainCheck that is installed, or imported already, is left alone.
    """
    if "traincheck" in sys.modules or importlib.util.find_spec("traincheck") is not None:
        yield
        return
    shims: dict[str, ModuleType] = {}
    for name in UPSTREAM_MODULES:
        shim = ModuleType(name, "Stands in for upstream TrainCheck while a script is recorded.")
        vars(shim).update(
            annotate_stage=annotate_stage, META_VARS=META_VARS, meta_vars=META_VARS, __path__=[]
        )
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(shims[parent], child, shim)
        shims[name] = shim
    sys.modules.update(shims)
    try:
        yield
    finally:
        for name, shim in shims.items():
            if sys.modules.get(name) is shim:
                del sys.modules[name]
