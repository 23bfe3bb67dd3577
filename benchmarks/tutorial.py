"""The tutorial from end to end: whole processes, start included."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Cost, Spread, bytes_of, run, tool

SCRIPT = Path(__file__).parent.parent / "examples" / "tutorial" / "mnist.py"


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row for each figure; plain and collected runs take turns."""
    plain: list[Cost] = []
    collected: list[Cost] = []
    with tempfile.TemporaryDirectory() as name:
        trace, invariants = Path(name, "trace"), Path(name, "invariants.json")
        # The first pair warms the caches of the file system up.
        for number in range(rounds + 1):
            shutil.rmtree(trace, ignore_errors=True)
            pair = (
                run([sys.executable, str(SCRIPT)]),
                run(tool("collect", "--pyscript", SCRIPT, "--output-dir", trace)),
            )
            if number:
                plain.append(pair[0])
                collected.append(pair[1])
        inferred = [run(tool("infer", "-f", trace, "-o", invariants)) for _ in range(rounds)]
        checked = [
            run(tool("check", "-f", trace, "-i", invariants, "-o", name)) for _ in range(rounds)
        ]
        pairs = list(zip(collected, plain, strict=True))
        figures: dict[str, Any] = {
            "plain script, s": Spread.of([cost.wall for cost in plain]),
            "full collection, s": Spread.of([cost.wall for cost in collected]),
            "full collection / plain, wall": Spread.of([c.wall / p.wall for c, p in pairs]),
            "full collection / plain, cpu": Spread.of([c.cpu / p.cpu for c, p in pairs]),
            "trace, bytes": bytes_of(trace),
            "inference, s": Spread.of([cost.wall for cost in inferred]),
            "check, s": Spread.of([cost.wall for cost in checked]),
        }
    return [{"tutorial": name, "figure": figure} for name, figure in figures.items()]
