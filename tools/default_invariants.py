"""Learns the bundled invariants from the healthy pipelines of this repository.

    python -m tools.default_invariants [--traces DIR] [--output FILE]

Each script is run under traincheck-collect, those of many ranks by torchrun; rules are learned from
all traces together, so that what one healthy pipeline breaks is no rule. Bundled are the rules that
several pipelines showed and that would be reported, and what the corpus showed of each such
hypothesis, refuted ones included: inference asks it what to believe of every pipeline.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tests.pipelines.catalog import BUGS, script
from traincheck_plugin.config import child_environment
from traincheck_plugin.engine import LocalEngine
from traincheck_plugin.inference.corpus import NO_CORPUS, dump_corpus, is_general
from traincheck_plugin.inference.infer import in_general, infer
from traincheck_plugin.inference.tally import Tally
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.model import Hypothesis, Invariant
from traincheck_plugin.relations.registry import relations
from traincheck_plugin.trace.reader import open_run

ROOT = Path(__file__).parent.parent
BUNDLED = ROOT / "traincheck_plugin" / "invariants" / "default.jsonl"
RANKS = ROOT / "tests" / "ranks" / "pipelines"
CORPUS = ROOT / "traincheck_plugin" / "inference" / "corpus.jsonl"


def scripts() -> dict[str, Path]:
    """Return the healthy scripts by name: those of the tests, run without --bug, and MNIST."""
    mnist = ROOT / "examples" / "tutorial" / "mnist.py"
    return {mnist.stem: mnist} | {name: script(name) for name in BUGS}


def scripts_of_ranks() -> dict[str, Path]:
    """Return the healthy scripts that are run on two processes, by name."""
    return {path.stem: path for path in sorted(RANKS.glob("*.py")) if path.stem != "__init__"}


def collect(path: Path, directory: Path, *options: str) -> None:
    """Write the trace of a script, started with *options*."""
    command = [sys.executable, "-m", "traincheck_plugin.cli.collect"]
    command += ["--output-dir", str(directory)]
    if path.parent == RANKS:
        command += ["--", sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        command += [str(path), *options]
    else:
        command += ["--pyscript", str(path), "--", *options]
    subprocess.run(  # noqa: S603
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment({"OMP_NUM_THREADS": "1"}),
    )


def bundled(invariants: Iterable[Invariant]) -> list[Invariant]:
    """Return those of the invariants of the corpus that are checked in everybody's training."""
    return [
        # They speak of every pipeline: which parameters showed them does not matter.
        replace(rule, pipelines=tuple(replace(p, parameters=()) for p in rule.pipelines))
        for rule in invariants
        if rule.scope == "universal" and rule.severity != "info"
    ]


def evidence(
    tallies: Mapping[Hypothesis, Tally], generals: Mapping[str, str]
) -> dict[Hypothesis, Tally]:
    """Return what the corpus showed of each hypothesis where it is of use to know.

    Args:
        tallies: the hypotheses, and the examples of each.
        generals: the most general name of each API: only hypotheses about these can be laws.
    """
    return {
        hypothesis: tally
        for hypothesis, tally in tallies.items()
        if is_general(hypothesis)
        and in_general(hypothesis, generals) == hypothesis
        and relations()[hypothesis.relation].severity(hypothesis.params) != "info"
    }


def main() -> None:
    """Collect, infer, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="where traces are kept, and found again")
    parser.add_argument("--output", type=Path, default=BUNDLED)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = arguments.traces or Path(folder)
        found = scripts() | scripts_of_ranks()
        for name, path in found.items():
            if not (traces / name).exists():
                print(f"collecting {path.relative_to(ROOT)}")  # noqa: T201
                collect(path, traces / name)
        # The evidence names its runs as they are opened here.
        with contextlib.chdir(traces):
            engine = LocalEngine(os.cpu_count() or 1)
            result = infer([open_run(name) for name in found], corpus=NO_CORPUS, engine=engine)
    kept = bundled(result.invariants)
    dump_invariants(kept, arguments.output)
    dump_corpus(evidence(result.tallies, result.generals).items(), CORPUS)
    print(f"{len(kept)} invariants from {len(found)} pipelines in {arguments.output}")  # noqa: T201


if __name__ == "__main__":
    main()
