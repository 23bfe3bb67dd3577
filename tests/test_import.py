"""Importing the package is cheap, needs no framework, and gives exactly the public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import traincheck_plugin

HEAVY = ("accelerate", "lightning", "numpy", "pyarrow", "ray", "rich", "torch", "transformers")


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after *statement*."""
    program = f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    finished = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return set(finished.stdout.split())


def test_listed_and_importable_names_agree():
    assert all(hasattr(traincheck_plugin, name) for name in traincheck_plugin.__all__)
    public = {name for name in dir(traincheck_plugin) if not name.startswith("_")}
    assert set(traincheck_plugin.__all__) == public | {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'wotch'"):
        _ = traincheck_plugin.wotch


def test_the_import_loads_nothing_heavy():
    assert modules_after("import traincheck_plugin").isdisjoint(HEAVY)


def test_a_heavy_import_would_be_seen():
    assert "numpy" in modules_after("import numpy")


def test_the_import_takes_less_than_300_milliseconds():
    program = (
        "import time; start = time.perf_counter(); import traincheck_plugin; "
        "print(time.perf_counter() - start)"
    )
    # The best of three: a busy machine slows one start, not all.
    seconds = min(
        float(
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
        )
        for _ in range(3)
    )
    assert seconds < 0.3


@pytest.mark.parametrize("distribution", ["traincheck-plugin"])
def test_the_version_is_that_of_the_distribution(distribution):
    from importlib.metadata import version

    assert version(distribution) == traincheck_plugin.__version__
