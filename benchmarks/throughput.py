"""(b) How fast traces are inferred from and checked, and with how much memory, by their size."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import bytes_of, run, tool
from benchmarks.tutorial import SCRIPT
from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import CALL_COLUMNS, Calls, Window
from traincheck_plugin.trace.reader import open_run
from traincheck_plugin.trace.writer import TraceWriter
from traincheck_plugin.vocabulary import NONE

SIZES = (1, 10, 100)


def measure(output: Path) -> list[dict[str, Any]]:
    """Return a row for each size of the trace of the tutorial, its windows repeated."""
    rows = []
    with tempfile.TemporaryDirectory(dir=output) as name:
        folder = Path(name)
        once = folder / "once"
        run(tool("collect", "--pyscript", SCRIPT, "--output-dir", once))
        for times in SIZES:
            trace, invariants = folder / f"x{times}", folder / f"{times}.json"
            num_calls = repeat(once, trace, times)
            inferred = run(tool("infer", "-f", trace, "-o", invariants))
            checked = run(tool("check", "-f", trace, "-i", invariants, "-o", folder, "--exit-zero"))
            rows.append(
                {
                    "trace": f"{times}x",
                    "calls": num_calls,
                    "bytes": bytes_of(trace),
                    "inference, cpu s": inferred.cpu,
                    "inferred calls a second": int(num_calls / inferred.cpu),
                    "inference, MB": inferred.memory // 10**6,
                    "check, cpu s": checked.cpu,
                    "checked calls a second": int(num_calls / checked.cpu),
                    "check, MB": checked.memory // 10**6,
                }
            )
            print(rows[-1], flush=True)
    return rows


def repeat(source: Path, target: Path, times: int) -> int:
    """Write the trace *source* so many times in a row, as one run; return the number of calls."""
    run_ = open_run(str(source))
    windows = next(list(trace.windows()) for trace in run_.ranks)
    writer = TraceWriter(str(target), run_.manifest)
    num_calls = 0
    for window in _repeated(windows, times):
        num_calls += len(window.calls)
        writer.write(window)
    writer.close()
    return num_calls


def _repeated(windows: list[Window], times: int) -> Iterator[Window]:
    catalog: Catalog = windows[0].catalog
    contexts = list(catalog.contexts)
    last = windows[-1].calls
    length = {
        "call": 1 + max(int(w.calls.call.max()) for w in windows if len(w.calls)),
        "sequence": 1 + int(last.end[-1]),
        "ns": 1 + int(last.end_ns[-1]),
        "step": 1 + max(context.step for context in contexts),
    }
    by_column = {
        "call": "call", "begin": "sequence", "end": "sequence", "begin_ns": "ns", "end_ns": "ns",
    }  # fmt: skip
    for number in range(times):
        shift = {name: number * size for name, size in length.items()}
        codes: dict[int, int] = {}

        def moved(code: int, codes: dict[int, int] = codes, by: int = shift["step"]) -> int:
            if code not in codes:
                context = contexts[code]
                codes[code] = catalog.contexts.code(replace(context, step=context.step + by))
            return codes[code]

        for window in windows:
            columns = {name: getattr(window.calls, name) for name in CALL_COLUMNS}
            for name, what in by_column.items():
                columns[name] = columns[name] + shift[what]
            parent = columns["parent"]
            columns["parent"] = parent + shift["call"] * (parent != NONE)
            columns["context"] = columns["context"].copy()
            columns["context"][:] = [moved(int(code)) for code in window.calls.context]
            yield replace(
                window,
                index=number * len(windows) + window.index,
                calls=Calls(**columns),
                frames=[
                    replace(
                        frame,
                        call=frame.call + shift["call"],
                        sequence=frame.sequence + shift["sequence"],
                        context=moved(frame.context),
                    )
                    for frame in window.frames
                ],
                cache={},
            )
