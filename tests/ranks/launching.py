"""Starts scripts on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLLECT = [sys.executable, "-m", "traincheck_plugin.cli.collect"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'integrations'}",
}


def torchrun(*arguments: str | Path, num_processes: int = 2) -> list[str]:
    """Return the command that runs a script on some processes."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_processes)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
        *map(str, arguments),
    ]


def run(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run *command* in *folder*."""
    return subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
