"""The errors that the package raises.

TrainCheckError
├── ConfigError        an option or environment variable has a value that makes no sense
├── TraceError         a trace cannot be read or written
├── InvariantError     an invariants file cannot be read, or asks for what does not exist
├── ScriptError        a training script cannot be started
├── ViolationError     an invariant does not hold, and the user asked to be told by an exception
└── TrainingStopped    likewise, and the user asked that training ends
"""


class TrainCheckError(Exception):
    """Base of every error that a user can act on; its text is one readable line."""


class ConfigError(TrainCheckError):
    """An option or environment variable has a value that makes no sense."""


class TraceError(TrainCheckError):
    """A trace cannot be read or written."""


class InvariantError(TrainCheckError):
    """An invariants file cannot be read, or asks for something that does not exist."""


class ViolationError(TrainCheckError):
    """A training run broke an invariant, and was watched with ``on_violation="raise"``."""


class TrainingStopped(TrainCheckError):  # noqa: N818  # not a failure: it was asked for
    """Ends the block of a run that broke an invariant, watched with ``on_violation="stop"``."""


class ScriptError(TrainCheckError):
    """A training script cannot be started."""
