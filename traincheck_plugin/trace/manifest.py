"""What a run was and how it ended: the two JSON files beside the Arrow streams."""

from __future__ import annotations

import json
import platform
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from traincheck_plugin.errors import TraceError
from traincheck_plugin.trace.schema import SCHEMA_VERSION
from traincheck_plugin.version import __version__

MANIFEST = "manifest.json"
END = "end.json"

How = Literal["finished", "exception", "interrupted", "exit"]


def now() -> str:
    """Return this moment as ISO text with its time zone."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a run was; `Manifest.here` fills in what the process itself knows.

    Attributes:
        schema_version: of the Arrow streams.
        traincheck_plugin, torch, python: versions; "" when unknown.
        command: as typed.
        script: the entry script, "" in a notebook.
        host: of the rank that wrote the manifest.
        started: ISO time.
        world_size: number of processes.
        plan: what was observed, as `traincheck_plugin.plan.Plan.to_json` tells it; empty when
            everything was.
        options: what else the writer wants to tell its readers; anything that JSON can hold.
    """

    schema_version: int = SCHEMA_VERSION
    traincheck_plugin: str = ""
    torch: str = ""
    python: str = ""
    command: tuple[str, ...] = ()
    script: str = ""
    host: str = ""
    started: str = ""
    world_size: int = 1
    plan: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def here(
        cls,
        *,
        torch: str = "",
        script: str = "",
        world_size: int = 1,
        command: tuple[str, ...] | None = None,
        plan: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Describe this process, now. The version of *torch* comes from the caller."""
        return cls(
            traincheck_plugin=__version__,
            torch=torch,
            python=platform.python_version(),
            command=tuple(sys.argv) if command is None else command,
            script=script,
            host=socket.gethostname(),
            started=now(),
            world_size=world_size,
            plan=dict(plan or {}),
            options=dict(options or {}),
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str) -> Manifest:
        """Read the manifest at *path*; unknown keys are skipped.

        Raises:
            TraceError: it is no manifest, or of a newer schema.
        """
        data = _load(text, path, cls(), "a run manifest", required=("schema_version",))
        check_version(data["schema_version"], path, data.get("traincheck_plugin", ""))
        data["command"] = tuple(data.get("command", ()))
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        how: by itself, by an exception, by Ctrl-C or a signal, or by `sys.exit`.
        detail: the exception, signal or exit message in one line.
        exit_code: of the process, None when unknown.
    """

    how: How = "finished"
    detail: str = ""
    exit_code: int | None = None

    @property
    def is_success(self) -> bool:
        """Whether the run did all that it was meant to do."""
        return self.how == "finished" or (self.how == "exit" and not self.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What a writer leaves behind when it is closed.

    Attributes:
        ended: ISO time.
        outcome: how the run ended.
        num_windows, num_calls, num_frames: what the streams hold.
        problems: what could not be observed or written, a sentence each.
    """

    ended: str
    outcome: Outcome = Outcome()
    num_windows: int = 0
    num_calls: int = 0
    num_frames: int = 0
    problems: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: str) -> End:
        """Read the end at *path*; unknown keys are skipped.

        Raises:
            TraceError: it is something else.
        """
        data = _load(text, path, cls(ended=""), "the end of a trace", required=("ended", "outcome"))
        outcome = data["outcome"]
        known = {f.name for f in fields(Outcome)}
        data["outcome"] = Outcome(**{k: v for k, v in outcome.items() if k in known})
        if data["outcome"].how not in get_args(How):
            raise TraceError(
                f"{path} says that the run ended by {data['outcome'].how!r}: expected one of "
                f"{', '.join(get_args(How))}; delete the file to read the trace without it"
            )
        data["problems"] = tuple(data.get("problems", ()))
        return cls(**data)


def check_version(version: int, path: str, writer: str = "") -> None:
    """Raise `TraceError` if *version*, found at *path*, is newer than this package reads."""
    if version > SCHEMA_VERSION:
        by = f" by traincheck-plugin {writer}" if writer else ""
        raise TraceError(
            f"{path} was written{by} with trace schema {version}, and traincheck-plugin "
            f"{__version__} reads schemas up to {SCHEMA_VERSION}: "
            "upgrade with pip install -U traincheck-plugin"
        )


def _load(
    text: str, path: str, example: Any, what: str, *, required: tuple[str, ...]
) -> dict[str, Any]:
    """Return the known fields of a JSON object, checked against the types in *example*."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise TraceError(
            f"{path} is not {what}: expected a JSON object, got text that ends or breaks at "
            f"{error}; delete the file to read the trace without it"
        ) from error
    names = [f.name for f in fields(example)]
    wrong = "" if isinstance(data, dict) else f"got {type(data).__name__}"
    for name in () if wrong else names:
        kind: Any = type(getattr(example, name))
        kind = {tuple: list, Outcome: dict}.get(kind, kind)
        if name not in data:
            wrong = f"it has no {name!r}" if name in required else wrong
        elif not isinstance(data[name], kind) or (kind is int and isinstance(data[name], bool)):
            wrong = f"its {name!r} is {data[name]!r}"
    if wrong:
        raise TraceError(
            f"{path} is not {what}: expected a JSON object with {', '.join(required)}, but "
            f"{wrong}; delete the file to read the trace without it"
        )
    return {name: data[name] for name in names if name in data}
