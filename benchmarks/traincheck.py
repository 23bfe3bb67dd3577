"""(c) The same script under TrainCheck 0.2.0 and under this tool, each by its command line.

TrainCheck is installed into an environment of its own, which is kept for the next time; torch and
what the script needs come from the present one.
"""

from __future__ import annotations

import site
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, bytes_of, run, tool
from benchmarks.tutorial import SCRIPT

VERSION = "0.2.0"


def measure(output: Path) -> list[dict[str, Any]]:
    """Return a row for each figure: both tools on the script of the tutorial, one run of each."""
    installed = install(output.resolve() / f"traincheck-{VERSION}")
    with tempfile.TemporaryDirectory(dir=output.resolve()) as name:
        folder = Path(name)
        script = folder / "mnist.py"
        # TrainCheck puts code of its own first: a docstring, and an import from the future, are
        # none then.
        lines = SCRIPT.read_text().splitlines(keepends=True)
        text = "".join(line for line in lines if "__future__" not in line)
        script.write_text(text.replace("description=__doc__.splitlines()[0]", ""))
        run([sys.executable, str(script)])
        figures = {
            f"TrainCheck {VERSION}": _figures(
                folder / "theirs",
                script,
                lambda command, *arguments: [str(installed / command), *map(str, arguments)],
                selective=lambda invariants: ["--invariants", str(invariants)],
            ),
            "traincheck-plugin": _figures(
                folder / "ours",
                script,
                lambda command, *arguments: tool(command.rpartition("-")[2], *arguments),
                selective=lambda invariants: ["--invariants", str(invariants)],
            ),
        }
    first, second = figures.values()
    return [
        {"figure": key} | {name: found[key] for name, found in figures.items()}
        | {"ratio": _ratio(key, first[key], second[key])}
        for key in first
    ]  # fmt: skip


def install(environment: Path) -> Path:
    """Return the folder of TrainCheck's commands, installed there if they are not yet."""
    commands = environment / "bin"
    if not (commands / "traincheck-collect").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "present.pth").write_text("\n".join(site.getsitepackages()))
        subprocess.run(
            [str(commands / "pip"), "install", "--quiet", f"traincheck=={VERSION}"], check=True
        )
    return commands


def _figures(
    folder: Path,
    script: Path,
    command: Callable[..., list[str]],
    *,
    selective: Callable[[Path], list[str]],
) -> dict[str, float | int]:
    folder.mkdir()
    trace, part, invariants = folder / "trace", folder / "part", folder / "invariants.json"
    collect = ["traincheck-collect", "--pyscript", script, "--models-to-track", "model"]
    collect += ["--output-dir"]
    before = run([sys.executable, str(script)])
    full = run(command(*collect, trace), cwd=folder)
    inferred = run(command("traincheck-infer", "-f", trace, "-o", invariants), cwd=folder)
    selected = run(command(*collect, part, *selective(invariants)), cwd=folder)
    after = run([sys.executable, str(script)])
    checked = run(
        command("traincheck-check", "-f", trace, "-i", invariants), cwd=folder, may_fail=True
    )
    plain = (before.wall + after.wall) / 2
    return {
        "plain script, s": plain,
        "full collection, times plain": full.wall / plain,
        "full collection, overhead in %": _overhead(full, plain),
        "selective collection, times plain": selected.wall / plain,
        "trace, bytes": bytes_of(trace),
        "inference, s": inferred.wall,
        "inference, MB": inferred.memory // 10**6,
        "check, s": checked.wall,
        "check, MB": checked.memory // 10**6,
    }


def _overhead(cost: Cost, plain: float) -> float:
    return 100 * (cost.wall / plain - 1)


def _ratio(key: str, theirs: float, ours: float) -> str:
    return "" if key == "plain script, s" or ours <= 0 else f"{theirs / ours:.1f}"
