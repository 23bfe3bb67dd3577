"""Importing the package is cheap, needs no framework, and gives exactly the public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import traincheck_plugin
from tests.builders import training_run
from tests.traces import recorded

HEAVY = ("accelerate", "lightning", "numpy", "pyarrow", "ray", "rich", "torch", "transformers")


def modules_after(statement: str, *arguments: object) -> set[str]:
    """The modules that a fresh interpreter has loaded after *statement*, those above included."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(finished.stdout.splitlines()[-1].split())


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


# pandas comes along with many a conversion by pyarrow, wherever it is installed.
UNUSED = ("torch", "pandas", "pyarrow.compute", "multiprocessing")


@pytest.mark.parametrize(
    ("command", "unused"), [("check", UNUSED), ("infer", (*UNUSED, "jinja2", "rich"))]
)
def test_the_commands_load_only_what_they_use(tmp_path, command, unused):
    trace = recorded(tmp_path / "trace", training_run(5)).path
    output = tmp_path / "results"
    loaded = modules_after(
        f"from traincheck_plugin.cli.{command} import main; assert main() == 0",
        *("-f", trace, "-o", output),
    )
    assert "pyarrow" in loaded
    assert loaded.isdisjoint(unused)


def test_writing_a_trace_loads_no_pandas(tmp_path):
    statement = (
        "import sys; from pathlib import Path; from tests.builders import training_run; "
        "from tests.traces import recorded; recorded(Path(sys.argv[1]), training_run(5))"
    )
    assert modules_after(statement, tmp_path / "trace").isdisjoint(UNUSED)


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
