"""Traces of the corpus: recorded once, found again as long as nothing that matters has changed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.default_invariants import ROOT, collect, scripts

RECORDING = ("recorder/**/*.py", "trace/**/*.py", "cli/**/*.py", "*.py")
"""The parts of the package that decide what is in a trace."""

Recipe = tuple[str, tuple[str, ...]]
"""A pipeline, and the options it is run with."""


class Traces:
    """A folder of traces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        package = ROOT / "traincheck_plugin"
        self._recorder = _digest(file for part in RECORDING for file in package.glob(part))

    def path(self, recipe: Recipe) -> Path:
        """Return where the trace of a recipe is, or will be."""
        name, options = recipe
        code = _digest([scripts()[name], ROOT / "tests" / "pipelines" / "digits.py"])
        version = hashlib.sha256(f"{self._recorder} {code}".encode()).hexdigest()[:8]
        words = "_".join(option.removeprefix("--") for option in options)
        return self._folder / f"{name}_{words}_{version}"

    def record(self, recipes: Iterable[Recipe], processes: int) -> dict[Recipe, str]:
        """Record what is missing; return why what failed did."""
        missing = [recipe for recipe in dict.fromkeys(recipes) if not self.path(recipe).exists()]
        with ThreadPoolExecutor(processes) as pool:
            told = pool.map(self._record, missing)
            return {
                recipe: problem for recipe, problem in zip(missing, told, strict=True) if problem
            }

    def _record(self, recipe: Recipe) -> str:
        name, options = recipe
        path = self.path(recipe)
        unfinished = path.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            collect(scripts()[name], unfinished, *options)
        except subprocess.CalledProcessError as error:
            return str(error.stderr).strip().rsplit("\n", 1)[-1]
        unfinished.rename(path)
        return ""


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
