"""The training scripts of this folder, and the bugs that each can be started with."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Bug(NamedTuple):
    """A bug that a script can be started with.

    Attributes:
        step: the first training step that goes wrong, counted from 0, with the default options.
        cause: a pattern; what names the true cause matches it, whatever its case.
    """

    step: int
    cause: str


def _constant(script: Path, name: str) -> object:
    # Read, not imported: listing the scripts must not load torch.
    for statement in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    return None


BUGS: dict[str, dict[str, Bug]] = {
    path.stem: {bug: Bug(*facts) for bug, facts in bugs.items()}
    for path in sorted(FOLDER.glob("*.py"))
    if isinstance(bugs := _constant(path, "BUGS"), dict)
}
"""For each script, by name: what its option --bug takes; nothing where a script is only ever
healthy. Without the option a run is healthy."""


def script(name: str) -> Path:
    """The path of the script *name*."""
    return FOLDER / f"{name}.py"


def family(name: str) -> str:
    """What the script *name* has in common with those that share its code: near-copies."""
    return str(_constant(script(name), "FAMILY") or name)
