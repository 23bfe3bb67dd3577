"""Settings from the environment; the only module that reads it.

| variable | meaning |
|---|---|
| `TRAINCHECK_DISABLE` | 1, true, yes or on: record and check nothing, whatever the code says |
| `TRAINCHECK_INVARIANTS` | for a run that names none: files or `default`, comma-separated |
| `TRAINCHECK_OUTPUT_DIR` | where a run that names no folder writes: a path or URI |
| `RANK`, `WORLD_SIZE` | set by the launcher: which process this is, and of how many |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from traincheck_plugin.errors import ConfigError

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
        rank = _count(environment, "RANK", default=0, minimum=0)
        world_size = _count(environment, "WORLD_SIZE", default=1, minimum=1)
        if environment.get("WORLD_SIZE") and rank >= world_size:
            raise ConfigError(
                f"Expected RANK to be below WORLD_SIZE={world_size} but got {rank}: "
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
