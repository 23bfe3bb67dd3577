"""Draws what was measured, where matplotlib is installed.

    python -m benchmarks.plots [FOLDER]

draws the figures in a folder anew, such as those that are published, in docs/plots.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import read_figures

Rows = list[dict[str, Any]]

MODES = ("noise", "live, default budget", "live, every step", "full collection")


def draw(folder: Path) -> None:
    """Draw a plot beside each file of figures in *folder* that has one."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("\nno plots: matplotlib is not installed")
        return
    plots = {"overhead": _overhead, "throughput": _throughput, "traincheck": _traincheck}
    # The same figures give the same file; texts are texts, which a reader can search.
    style = {"svg.hashsalt": "traincheck", "svg.fonttype": "none"}
    for name, plot in plots.items():
        file = folder / f"{name}.json"
        if file.exists():
            figure = Figure(figsize=(8, 4), layout="constrained")
            with mpl.rc_context(style):
                plot(figure.subplots(), read_figures(file))
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _overhead(axes: Any, rows: Rows) -> None:
    rows = [row for row in rows if row["loop"] == "plain"]
    for number, mode in enumerate(MODES):
        found = [row[mode] for row in rows]
        medians = [spread.median for spread in found]
        reach = [
            [spread.median - spread.minimum for spread in found],
            [spread.maximum - spread.median for spread in found],
        ]
        places = [place + 0.2 * (number - 1.5) for place in range(len(rows))]
        axes.bar(places, medians, 0.2, yerr=reach, label=mode, error_kw={"linewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8)
    names = [row["training"] for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=15, horizontalalignment="right")
    axes.set_ylabel("time of a step, times plain")
    axes.legend(fontsize="small")


def _throughput(axes: Any, rows: Rows) -> None:
    calls = [row["calls"] for row in rows]
    memory = axes.twinx()
    for what, colour in (("inference", "tab:blue"), ("check", "tab:orange")):
        axes.plot(calls, [row[f"{what}, cpu s"] for row in rows], "o-", color=colour, label=what)
        memory.plot(calls, [row[f"{what}, MB"] for row in rows], "x--", color=colour)
    axes.set(xscale="log", xlabel="calls in the trace", ylabel="CPU seconds (o)", ylim=(0, None))
    memory.set(ylabel="peak memory, MB (x)", ylim=(0, None))
    axes.legend()


def _traincheck(axes: Any, rows: Rows) -> None:
    rows = [row for row in reversed(rows) if row["ratio"]]
    bars = axes.barh([row["figure"] for row in rows], [float(row["ratio"]) for row in rows])
    axes.bar_label(bars, [row["ratio"] for row in rows], padding=3)
    axes.margins(x=0.1)
    axes.set(xscale="log", xlabel="TrainCheck 0.2.0, times traincheck-plugin", xlim=(1, None))


if __name__ == "__main__":
    draw(Path(*(sys.argv[1:] or ["bench_output"])))
