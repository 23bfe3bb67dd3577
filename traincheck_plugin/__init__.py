"""Catches silent training bugs by learning what healthy training runs do."""

from typing import TYPE_CHECKING, Any

from traincheck_plugin.annotations import META_VARS, annotate_stage
from traincheck_plugin.errors import (
    ConfigError,
    InvariantError,
    ScriptError,
    TraceError,
    TrainCheckError,
    TrainingStopped,
    ViolationError,
)
from traincheck_plugin.version import __version__

if TYPE_CHECKING:
    from traincheck_plugin.session.monitor import Monitor, watch

__all__ = [
    "META_VARS",
    "ConfigError",
    "InvariantError",
    "Monitor",
    "ScriptError",
    "TraceError",
    "TrainCheckError",
    "TrainingStopped",
    "ViolationError",
    "__version__",
    "annotate_stage",
    "watch",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # They need torch, which the commands that read traces do without.
    if name in ("Monitor", "watch"):
        from traincheck_plugin.session import monitor

        return getattr(monitor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
