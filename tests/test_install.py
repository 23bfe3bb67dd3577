"""What users install: the wheel, built from the source distribution, in an environment of its own.

The environment is empty but for the wheel. Its dependencies are those of the environment that runs
the tests, reached through a path file, since installing torch takes minutes. The path file cannot
bring this checkout in: Python reads path files only in the folders of the environment itself, not
in folders that they name, so the editable install next door stays out of sight.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.pipelines.catalog import script

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "traincheck_plugin",
    "traincheck_lightning",
    "traincheck_accelerate",
    "traincheck_transformers",
)
COMMANDS = ("traincheck-collect", "traincheck-infer", "traincheck-check")


def run(*command, cwd, expected=0):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    finished = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert finished.returncode == expected, f"{command}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of an environment that holds the wheel, and sees its dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    # Only now, or pip would find the editable install and take the wheel for installed.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    return folder


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_comes_from_the_wheel(environment, tmp_path, package):
    program = f"import {package}; print({package}.__file__)"
    if package != "traincheck_plugin":
        # Adapters import their framework, which need not be installed here.
        program = f"from importlib.util import find_spec; print(find_spec('{package}').origin)"
    where = run(environment / "bin" / "python", "-c", program, cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)


def test_nothing_else_is_installed(environment):
    (site_packages,) = environment.glob("lib/python*/site-packages")
    names = {path.name for path in site_packages.iterdir() if path.suffix != ".pth"}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(environment, tmp_path, command):
    assert f"usage: {command}" in run(environment / "bin" / command, "--help", cwd=tmp_path)


def test_the_commands_work_together(environment, tmp_path):
    collect, infer, check = (environment / "bin" / command for command in COMMANDS)
    arguments = ("--pyscript", script("vae"), "--models-to-track", "model", "--output-dir")
    run(collect, *arguments, "trace", "--", "--epochs", "1", cwd=tmp_path)
    run(infer, "-f", "trace", "-o", "invariants.json", cwd=tmp_path)
    assert (tmp_path / "invariants.json").read_text().startswith("{")

    printed = run(check, "-f", "trace", "-i", "invariants.json", "-o", "results", cwd=tmp_path)
    assert "Total failed invariants: 0/" in printed
    assert re.search(r"Total passed invariants: [1-9]\d*/", printed)
    assert list(tmp_path.glob("results/**/report.html"))
