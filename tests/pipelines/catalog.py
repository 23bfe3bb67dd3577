"""The training scripts of this folder, and the bugs that each can be started with."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent


def _bugs(script: Path) -> tuple[str, ...] | None:
    # Read, not imported: listing the scripts must not load torch.
    for statement in ast.parse(script.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "BUGS":
            return ast.literal_eval(statement.value)
    return None


BUGS: dict[str, tuple[str, ...]] = {
    path.stem: bugs for path in sorted(FOLDER.glob("*.py")) if (bugs := _bugs(path)) is not None
}
"""For each script, by name: what its option --bug takes. Without the option a run is healthy."""


def script(name: str) -> Path:
    """The path of the script *name*."""
    return FOLDER / f"{name}.py"
