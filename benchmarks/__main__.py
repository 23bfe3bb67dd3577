"""Runs the benchmarks, or parts of them, and prints their tables.

    python -m benchmarks [overhead] [shares] [throughput] [tutorial] [traincheck]

Figures also go to a JSON file, and plots beside it where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import compileall
from collections.abc import Callable
from pathlib import Path
from typing import Any

import traincheck_plugin
from benchmarks import overhead, plots, shares, throughput, traincheck, tutorial
from benchmarks.loops import LOOPS
from benchmarks.measure import table, write_figures
from benchmarks.workloads import WORKLOADS

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("parts", nargs="*", help="which parts to run; none: all")
    parser.add_argument("--rounds", type=int, default=5, help="of neighbouring runs")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--device", default="cpu", help="of the trainings of overhead and shares")
    parser.add_argument("--output", type=Path, default=Path("bench_output"))
    options = parser.parse_args()
    parts: dict[str, Callable[[], Rows]] = {
        "overhead": lambda: overhead.measure(
            options.workloads, options.loops, options.rounds, options.device
        ),
        "shares": lambda: shares.measure(options.workloads, options.device),
        "throughput": lambda: throughput.measure(options.output),
        "tutorial": lambda: tutorial.measure(options.rounds),
        "traincheck": lambda: traincheck.measure(options.output),
    }
    unknown = set(options.parts) - set(parts)
    if unknown:
        parser.error(f"expected parts among {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    options.output.mkdir(parents=True, exist_ok=True)
    # As pip does where the package is installed; Python may be told to write no bytecode here.
    compileall.compile_dir(Path(traincheck_plugin.__file__).parent, quiet=1)
    for name in options.parts or parts:
        print(f"\n## {name}\n", flush=True)
        rows = parts[name]()
        print(f"\n{table(rows)}", flush=True)
        write_figures(rows, options.output / f"{name}.json")
    plots.draw(options.output)


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the lines of the description."""


if __name__ == "__main__":
    main()
