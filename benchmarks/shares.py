"""(a) Of what a watched step costs, what the recorder and the check take: no noise hides it."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.loops import UNTIMED, Options, plain
from benchmarks.workloads import WORKLOADS, Batch
from traincheck_plugin import watch
from traincheck_plugin.events import Window
from traincheck_plugin.session.live_check import LiveCheck

MIN_STEPS = 12


def measure(workloads: Sequence[str], device: str) -> list[dict[str, Any]]:
    """Return a row for each workload, in a plain loop.

    The time of the thread that trains, every step watched: medians of the steps. It is an estimate
    from below, for what our traffic in the caches costs the training is not in it.
    """
    torch.set_num_threads(1)
    rows = []
    for key in workloads:
        workload = WORKLOADS[key]
        torch.manual_seed(0)
        model, batch = workload.build()
        model, batch = model.to(device), tuple(part.to(device) for part in batch)
        num_steps = max(workload.num_steps, MIN_STEPS)
        step = 1e3 * statistics.median(plain(model, batch, num_steps, None) for _ in range(3))
        live, check = _spent(model, batch, num_steps, {"every_n_steps": 1})
        with tempfile.TemporaryDirectory() as folder:
            full, _ = _spent(model, batch, num_steps, {"output_dir": f"{folder}/trace"})
        rows.append(
            {
                "training": workload.name,
                "plain step, ms": step,
                "live, ms": live,
                "of that the check": check,
                "live, %": 100 * live / step,
                "full collection, ms": full,
                "full collection, %": 100 * full / step,
            }
        )
        print(rows[-1], flush=True)
    return rows


def _spent(model: nn.Module, batch: Batch, num_steps: int, options: Options) -> tuple[float, float]:
    """Return what the recorder takes of a step, with the check, and the check alone, in ms."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, target = batch
    spent, checks = [], [0]
    write = LiveCheck.write

    def timed(check: LiveCheck, window: Window) -> None:
        start = time.perf_counter_ns()
        write(check, window)
        checks[-1] += time.perf_counter_ns() - start

    LiveCheck.write = timed
    try:
        with watch(model, optimizer, log=False, **options) as monitor:
            session = monitor._session  # what it spends is shown to users for a whole run only
            assert session is not None
            recorder = session.recorder
            for _ in range(UNTIMED + num_steps):
                spent.append(recorder.spent_ns)
                checks.append(0)
                optimizer.zero_grad()
                F.cross_entropy(model(x), target).backward()
                optimizer.step()
    finally:
        LiveCheck.write = write
    steps = [after - before for before, after in itertools.pairwise(spent)]
    return 1e-6 * statistics.median(steps[UNTIMED:]), 1e-6 * statistics.median(checks[UNTIMED:])
