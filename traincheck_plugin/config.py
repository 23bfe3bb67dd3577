"""Settings from the environment; the only module that reads it.

| variable | meaning |
|---|---|
| `TRAINCHECK_DISABLE` | 1, true, yes or on: record and check nothing, whatever the code says |
| `TRAINCHECK_INVARIANTS` | for a run that names none: files or `default`, comma-separated |
| `TRAINCHECK_OUTPUT_DIR` | where a run that names no folder writes: a path or URI |
| `RANK`, `WORLD_SIZE` | set by the launcher: which process this is, and of how many |
| `OMPI_COMM_WORLD_RANK`, `OMPI_COMM_WORLD_SIZE` | the same from Open MPI, where they are not set |
| `PMI_RANK`, `PMI_SIZE` | the same from other MPIs |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from traincheck_plugin.errors import ConfigError

_RANK_VARIABLES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
_PLACE_VARIABLES = ("RANK", "LOCAL_RANK")
_LAUNCH = "TRAINCHECK_LAUNCH"
_PATH = "PYTHONPATH"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says about this process.

    Attributes:
        disabled: the kill switch is on: nothing may be recorded or checked.
        invariants: files, or the word ``default`` for the bundled ones; empty when the environment
            names none.
        output_dir: a path or URI; None when the environment names none.
        rank: of this process in its launcher's world; 0 when there is no launcher.
        world_size: number of processes that the launcher started; 1 when there is none.
    """

    disabled: bool = False
    invariants: tuple[str, ...] = ()
    output_dir: str | None = None
    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from *environment*, by default that of this process.

        A variable that is set to nothing counts as not set.

        Raises:
            ConfigError: a variable has a value that makes no sense.
        """
        environment = os.environ if environment is None else environment
        of_rank, of_size = next(
            (names for names in _RANK_VARIABLES if any(map(environment.get, names))),
            _RANK_VARIABLES[0],
        )
        rank = _count(environment, of_rank, default=0, minimum=0)
        world_size = _count(environment, of_size, default=1, minimum=1)
        if environment.get(of_size) and rank >= world_size:
            raise ConfigError(
                f"Expected {of_rank} to be below {of_size}={world_size} but got {rank}: "
                "let the launcher set both, or unset both."
            )
        return cls(
            disabled=_switch(environment, "TRAINCHECK_DISABLE"),
            invariants=_names(environment, "TRAINCHECK_INVARIANTS"),
            output_dir=environment.get("TRAINCHECK_OUTPUT_DIR") or None,
            rank=rank,
            world_size=world_size,
        )


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process to start: that of this process with *changes*."""
    return {**os.environ, **changes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What `traincheck-collect` tells the processes that a launcher starts for it.

    Attributes:
        arguments: options of `traincheck-collect` for a process that is recorded.
        files: the scripts named on the command line, as real paths.
        hook: the folder on the Python path through which the processes learn of this.
        place: which process of which launcher the command itself was, see `place`.
    """

    arguments: tuple[str, ...]
    files: tuple[str, ...]
    hook: str
    place: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return the environment that the launcher is started with."""
        told = json.dumps([self.arguments, self.files, self.hook, self.place])
        paths = [self.hook, *filter(None, [os.environ.get(_PATH)])]
        return child_environment({_LAUNCH: told, _PATH: os.pathsep.join(paths)})

    @classmethod
    def from_environment(cls) -> Launch | None:
        """Return what this process was told, if anything."""
        told = os.environ.get(_LAUNCH)
        if not told:
            return None
        arguments, files, hook, place_ = json.loads(told)
        return cls(arguments=tuple(arguments), files=tuple(files), hook=hook, place=tuple(place_))

    def restored_environment(self) -> dict[str, str]:
        """Return the environment of this process as it would be without the command."""
        environment = {k: v for k, v in os.environ.items() if k not in (_LAUNCH, _PATH)}
        paths = os.environ.get(_PATH, "").split(os.pathsep)
        if self.hook in paths:
            paths.remove(self.hook)
        return environment | ({_PATH: os.pathsep.join(paths)} if paths else {})


def place() -> tuple[str, ...]:
    """Return what the launcher set to tell its processes apart; empty texts without a launcher."""
    return tuple(os.environ.get(name, "") for name in _PLACE_VARIABLES)


def _switch(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "")
    if value.lower() in _TRUE:
        return True
    if value.lower() in ("", *_FALSE):
        return False
    raise ConfigError(
        f"Expected {name} to be one of {', '.join(_TRUE + _FALSE)} but got {value!r}: "
        "set it to one of these or unset it."
    )


def _names(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    # Commas, not the path separator: a colon is part of URIs such as s3://bucket/invariants.json.
    parts = (part.strip() for part in environment.get(name, "").split(","))
    return tuple(part for part in parts if part)


def _count(environment: Mapping[str, str], name: str, *, default: int, minimum: int) -> int:
    value = environment.get(name, "")
    if not value:
        return default
    if not value.isdecimal() or int(value) < minimum:
        raise ConfigError(
            f"Expected {name} to be a whole number of at least {minimum} but got {value!r}: "
            "it is set by launchers such as torchrun; unset it when there is none."
        )
    return int(value)
