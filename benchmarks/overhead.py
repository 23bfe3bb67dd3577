"""(a) What collecting and watching cost a step, beside the same steps without."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import LOOPS, UNTIMED, Options
from benchmarks.measure import Spread, bytes_of, table
from benchmarks.workloads import WORKLOADS

MODES: dict[str, Options | None] = {
    "noise": None,
    "full collection": {"output_dir": ""},
    "live, every step": {"every_n_steps": 1},
    "live, default budget": {"warm_up_steps": 2},
}
"""The options of each; what is compared with itself tells how far to trust the others."""


def measure(
    workloads: Sequence[str], loops: Sequence[str], rounds: int, device: str
) -> list[dict[str, Any]]:
    """Return a row for each workload under each framework.

    Stretches of all modes take turns in one process, in another order each round, and each is
    compared with the plain one of its round: a machine whose speed drifts slows all alike.
    """
    torch.set_num_threads(1)
    rows = []
    for key in workloads:
        workload = WORKLOADS[key]
        for loop in loops:
            torch.manual_seed(0)
            model, batch = workload.build()
            model, batch = model.to(device), tuple(part.to(device) for part in batch)
            ratios: dict[str, list[float]] = {mode: [] for mode in MODES}
            plain, sizes = [], []
            train = LOOPS[loop]
            train(model, batch, workload.num_steps, None)
            for number in range(rounds):
                times = {}
                names = ["", *MODES]
                for mode in names[number % len(names) :] + names[: number % len(names)]:
                    options = MODES.get(mode)
                    with tempfile.TemporaryDirectory() as folder:
                        if options is not None and "output_dir" in options:
                            options = {"output_dir": str(Path(folder, "trace"))}
                        times[mode] = train(model, batch, workload.num_steps, options)
                        if options is not None and "output_dir" in options:
                            sizes.append(bytes_of(Path(folder)))
                plain.append(times[""])
                for mode in MODES:
                    ratios[mode].append(times[mode] / times[""])
            row: dict[str, Any] = {"training": workload.name, "loop": loop}
            row["step, ms"] = Spread.of([1e3 * seconds for seconds in plain])
            row |= {mode: Spread.of(found) for mode, found in ratios.items()}
            row["trace, bytes per step"] = Spread.of(
                [size / (UNTIMED + workload.num_steps) for size in sizes]
            )
            rows.append(row)
            print(table([row], with_head=len(rows) == 1), flush=True)
    return rows
