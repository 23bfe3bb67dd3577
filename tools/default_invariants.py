"""Learns the bundled invariants from the healthy pipelines of this repository.

    python tools/default_invariants.py [--traces DIR] [--output FILE]

Each script is run under traincheck-collect; rules are learned from all traces together, so that
what one healthy pipeline breaks is no rule. Kept is what several pipelines showed, what speaks of
training itself, and what would be reported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from traincheck_plugin.config import child_environment
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.trace.reader import open_run

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "traincheck_plugin" / "invariants" / "default.jsonl"

MIN_PIPELINES = 3
"""What fewer pipelines show may be a habit of theirs."""


def scripts() -> list[Path]:
    """Return the healthy scripts: those of the tests that take --bug, run without it, and MNIST."""
    pipelines = ROOT / "tests" / "pipelines"
    return [
        ROOT / "examples" / "tutorial" / "mnist.py",
        *(path for path in sorted(pipelines.glob("*.py")) if "\nBUGS = (" in path.read_text()),
    ]


def collect(script: Path, directory: Path) -> None:
    """Write the trace of a script."""
    command = [sys.executable, "-m", "traincheck_plugin.cli.collect", "--pyscript", str(script)]
    subprocess.run(  # noqa: S603
        [*command, "--output-dir", str(directory)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=child_environment({"OMP_NUM_THREADS": "1"}),
    )


def is_bundled(invariant: Invariant) -> bool:
    """Return whether an invariant is one to check in everybody's training."""
    return (
        invariant.scope == "universal"
        and invariant.severity != "info"
        and invariant.evidence.num_runs >= MIN_PIPELINES
    )


def main() -> None:
    """Collect, infer, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="where traces are kept, and found again")
    parser.add_argument("--output", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = arguments.traces or Path(folder)
        found = scripts()
        for script in found:
            if not (traces / script.stem).exists():
                print(f"collecting {script.relative_to(ROOT)}")  # noqa: T201
                collect(script, traces / script.stem)
        result = infer([open_run(traces / script.stem) for script in found])
    kept = [
        # They speak of every pipeline: which parameters showed them does not matter.
        replace(rule, pipelines=tuple(replace(p, parameters=()) for p in rule.pipelines))
        for rule in result.invariants
        if is_bundled(rule)
    ]
    dump_invariants(kept, arguments.output)
    print(f"{len(kept)} invariants from {len(found)} pipelines in {arguments.output}")  # noqa: T201


if __name__ == "__main__":
    main()
