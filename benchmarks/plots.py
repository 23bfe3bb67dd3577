"""Draws what was measured, where matplotlib is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def draw(folder: Path) -> None:
    """Draw a plot beside each file of figures in *folder* that has one."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("\nno plots: matplotlib is not installed")
        return
    for name, plot in (("overhead", _overhead), ("throughput", _throughput)):
        file = folder / f"{name}.json"
        if file.exists():
            figure = Figure(figsize=(8, 4), layout="constrained")
            plot(figure.subplots(), json.loads(file.read_text()))
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _overhead(axes: Any, rows: list[dict[str, Any]]) -> None:
    rows = [row for row in rows if row["loop"] == "plain"]
    modes = ("noise", "live, default budget", "live, every step", "full collection")
    for number, mode in enumerate(modes):
        found = [row[mode] for row in rows]
        medians = [spread["median"] for spread in found]
        reach = [
            [spread["median"] - spread["minimum"] for spread in found],
            [spread["maximum"] - spread["median"] for spread in found],
        ]
        places = [place + 0.2 * (number - 1.5) for place in range(len(rows))]
        axes.bar(places, medians, 0.2, yerr=reach, label=mode, error_kw={"linewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row["training"] for row in rows], rotation=15)
    axes.set_ylabel("time of a step, times plain")
    axes.legend(fontsize="small")


def _throughput(axes: Any, rows: list[dict[str, Any]]) -> None:
    calls = [row["calls"] for row in rows]
    memory = axes.twinx()
    for what, colour in (("inference", "tab:blue"), ("check", "tab:orange")):
        axes.plot(calls, [row[f"{what}, s"] for row in rows], "o-", color=colour, label=what)
        memory.plot(calls, [row[f"{what}, MB"] for row in rows], "x--", color=colour)
    axes.set(xscale="log", yscale="log", xlabel="calls in the trace", ylabel="seconds (o)")
    memory.set(ylabel="peak memory, MB (x)", ylim=(0, None))
    axes.legend()
