"""Times commands and sums measurements up."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A median with its extremes."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.median >= 1000:
            return f"{self.median:,.0f}"
        return f"{self.median:.3g} ({self.minimum:.3g} to {self.maximum:.3g})"


@dataclass(frozen=True)
class Cost:
    """What one command took.

    Attributes:
        wall, cpu: seconds.
        memory: peak of the resident set, in bytes.
    """

    wall: float
    cpu: float
    memory: int


_LEAN = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([code, wall, used.ru_utime + used.ru_stime, used.ru_maxrss], sys.stdout)
"""
"""A small process between this one and a command: the peak of a process is no less than what the
one that started it had, and this one is large."""


def run(command: Sequence[str], *, cwd: Path | None = None, may_fail: bool = False) -> Cost:
    """Run a command in one thread and say what it and its children took; raises if it fails."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _LEAN, *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    code, wall, cpu, memory = json.loads(done.stdout)
    if code and not may_fail:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Cost(wall, cpu, memory * (1 if sys.platform == "darwin" else 1024))


def tool(name: str, *arguments: object) -> list[str]:
    """Return the command line of one of the three commands, in this environment."""
    return [sys.executable, "-m", f"traincheck_plugin.cli.{name}", *map(str, arguments)]


def bytes_of(folder: Path) -> int:
    """Return the size of all files below *folder*."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def table(rows: Sequence[dict[str, Any]], *, with_head: bool = True) -> str:
    """Return *rows*, which have the same keys, as a table in Markdown."""
    keys = list(rows[0])
    head = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)] if with_head else []
    return "\n".join(
        [*head, *("| " + " | ".join(_text(row[key]) for key in keys) + " |" for row in rows)]
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_figures(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write *rows* as JSON."""
    file.write_text(json.dumps(rows, indent=1, default=_plain_data) + "\n")


def read_figures(file: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_figures` wrote."""
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    return [
        {key: Spread(**value) if isinstance(value, dict) else value for key, value in row.items()}
        for row in rows
    ]


def _plain_data(value: Any) -> Any:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(f"expected a measurement, got {value!r}")
