"""Times the tutorial: collecting, inferring and checking, beside the plain script.

Plain and collected runs take turns, so that a machine whose speed drifts slows both; figures are
whole processes, start included. Ratios are of the pairs.

    python benchmarks/bench_tutorial.py [--runs 5] [--script examples/tutorial/mnist.py]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TUTORIAL = Path(__file__).parent.parent / "examples" / "tutorial"


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall time and its processor time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def entry(name: str) -> list[str]:
    """Return the command line of one of the three commands, in this environment."""
    return [sys.executable, "-m", f"traincheck_plugin.cli.{name}"]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--script", default=str(TUTORIAL / "mnist.py"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        plain: list[tuple[float, float]] = []
        collected: list[tuple[float, float]] = []
        for _ in range(options.runs + 1):
            shutil.rmtree(trace, ignore_errors=True)
            plain.append(timed([sys.executable, options.script]))
            collected.append(
                timed([*entry("collect"), "--pyscript", options.script, "--output-dir", str(trace)])
            )
        # The first pair warms the caches of the file system up.
        plain, collected = plain[1:], collected[1:]
        invariants = Path(folder) / "invariants.json"
        infer = [*entry("infer"), "-f", str(trace), "-o", str(invariants)]
        check = [*entry("check"), "-f", str(trace), "-i", str(invariants), "-o", folder]
        inferred = [timed(infer)[0] for _ in range(options.runs)]
        checked = [timed(check)[0] for _ in range(options.runs)]
        num_bytes = sum(f.stat().st_size for f in trace.rglob("*") if f.is_file())
        print(f"{options.runs} runs each; median (minimum to maximum)")
        print(f"plain script, wall seconds        {spread([w for w, _ in plain])}")
        print(f"full collection, wall seconds     {spread([w for w, _ in collected])}")
        pairs = list(zip(collected, plain, strict=True))
        print(f"full collection / plain, wall     {spread([c[0] / p[0] for c, p in pairs])}")
        print(f"full collection / plain, cpu      {spread([c[1] / p[1] for c, p in pairs])}")
        print(f"trace, bytes                      {num_bytes:,}")
        print(f"inference, wall seconds           {spread(inferred)}")
        print(f"check, wall seconds               {spread(checked)}")


if __name__ == "__main__":
    main()
