"""Learns the bundled invariants from the healthy pipelines of this repository.

    python tools/default_invariants.py [--traces DIR] [--output FILE]

Each script is run under traincheck-collect, those of many ranks by torchrun; rules are learned from
all traces together, so that what one healthy pipeline breaks is no rule. Bundled are the rules that
several pipelines showed and that would be reported, and what the corpus showed of each such
hypothesis, refuted ones included: inference asks it what to believe of every pipeline.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from traincheck_plugin.config import child_environment
from traincheck_plugin.inference.corpus import NO_CORPUS, dump_corpus, is_general
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.model import Hypothesis, Invariant
from traincheck_plugin.relations.registry import relations
from traincheck_plugin.trace.reader import open_run

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "traincheck_plugin" / "invariants" / "default.jsonl"
RANKS = ROOT / "tests" / "ranks" / "pipelines"
CORPUS = ROOT / "traincheck_plugin" / "inference" / "corpus.jsonl"


def scripts() -> list[Path]:
    """Return the healthy scripts: those of the tests that take --bug, run without it, and MNIST."""
    pipelines = ROOT / "tests" / "pipelines"
    return [
        ROOT / "examples" / "tutorial" / "mnist.py",
        *(path for path in sorted(pipelines.glob("*.py")) if "\nBUGS = (" in path.read_text()),
    ]


def scripts_of_ranks() -> list[Path]:
    """Return the healthy scripts that are run on two processes."""
    return sorted(path for path in RANKS.glob("*.py") if path.stem != "__init__")


def collect(script: Path, directory: Path) -> None:
    """Write the trace of a script."""
    command = [sys.executable, "-m", "traincheck_plugin.cli.collect"]
    command += ["--output-dir", str(directory)]
    if script.parent == RANKS:
        command += ["--", sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script)]
    else:
        command += ["--pyscript", str(script)]
    subprocess.run(  # noqa: S603
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env=child_environment({"OMP_NUM_THREADS": "1"}),
    )


def is_bundled(invariant: Invariant) -> bool:
    """Return whether an invariant is one to check in everybody's training."""
    return invariant.scope == "universal" and invariant.severity != "info"


def is_evidence(hypothesis: Hypothesis) -> bool:
    """Return whether it is of use to know what the corpus showed of a hypothesis."""
    relation = relations()[hypothesis.relation]
    return is_general(hypothesis) and relation.severity(hypothesis.params) != "info"


def main() -> None:
    """Collect, infer, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="where traces are kept, and found again")
    parser.add_argument("--output", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = arguments.traces or Path(folder)
        found = [*scripts(), *scripts_of_ranks()]
        for script in found:
            if not (traces / script.stem).exists():
                print(f"collecting {script.relative_to(ROOT)}")  # noqa: T201
                collect(script, traces / script.stem)
        # The evidence names its runs as they are opened here.
        with contextlib.chdir(traces):
            runs = [open_run(script.stem) for script in found]
            result = infer(runs, corpus=NO_CORPUS)
    kept = [
        # They speak of every pipeline: which parameters showed them does not matter.
        replace(rule, pipelines=tuple(replace(p, parameters=()) for p in rule.pipelines))
        for rule in result.invariants
        if is_bundled(rule)
    ]
    dump_invariants(kept, arguments.output)
    dump_corpus(((h, t) for h, t in result.tallies.items() if is_evidence(h)), CORPUS)
    print(f"{len(kept)} invariants from {len(found)} pipelines in {arguments.output}")  # noqa: T201


if __name__ == "__main__":
    main()
