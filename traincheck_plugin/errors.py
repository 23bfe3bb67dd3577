"""The errors that the package raises.

TrainCheckError
├── ConfigError        an option or environment variable has a value that makes no sense
├── TraceError         a trace cannot be read or written
├── InvariantError     an invariants file cannot be read, or asks for what does not exist
└── ScriptError        a training script cannot be started
"""


class TrainCheckError(Exception):
    """Base of every error that a user can act on; its text is one readable line."""


class ConfigError(TrainCheckError):
    """An option or environment variable has a value that makes no sense."""


class TraceError(TrainCheckError):
    """A trace cannot be read or written."""


class InvariantError(TrainCheckError):
    """An invariants file cannot be read, or asks for something that does not exist."""


class ScriptError(TrainCheckError):
    """A training script cannot be started."""
