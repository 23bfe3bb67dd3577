"""Catches silent training bugs by learning what healthy training runs do."""

from traincheck_plugin.errors import (
    ConfigError,
    InvariantError,
    ScriptError,
    TraceError,
    TrainCheckError,
)
from traincheck_plugin.version import __version__

__all__ = [
    "ConfigError",
    "InvariantError",
    "ScriptError",
    "TraceError",
    "TrainCheckError",
    "__version__",
]
