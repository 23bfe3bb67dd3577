"""Runs the quality bench.

    python -m benchmarks.quality [CASE ...] [--write] [--verbose]

A case is a pipeline (``vae``) or one of its bugs (``vae.lr_zero``); without any, all are run.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

from benchmarks.quality.corpus import (
    HEALTHY,
    REFERENCE,
    TWIN,
    Case,
    cases,
    pipelines,
    relatives,
    three_others,
)
from benchmarks.quality.judging import judge, reports
from benchmarks.quality.learning import Bundle, bundles_without, learn
from benchmarks.quality.table import WAYS, Result, told, written
from benchmarks.quality.traces import Traces
from tools.default_invariants import ROOT

PAGE = ROOT / "docs" / "quality.md"


def main() -> int:
    """Run the cases, print the table; return 1 when a pipeline could not be run."""
    arguments = _arguments()
    started = time.monotonic()
    traces = Traces(arguments.traces)
    chosen = _chosen(arguments.cases)
    record = partial(traces.record, processes=arguments.processes)
    failed = record([(name, REFERENCE) for name in pipelines()])
    failed |= record([(case.pipeline, case.options) for found in chosen.values() for case in found])
    for (name, options), problem in failed.items():
        print(f"{name} {' '.join(options)} failed: {problem}", file=sys.stderr)
    broken = {name for name, options in failed if options in (REFERENCE, HEALTHY[TWIN])}
    print(f"traces ready after {time.monotonic() - started:.0f} s", file=sys.stderr)

    references = {
        name: traces.path((name, REFERENCE)) for name in pipelines() if name not in broken
    }
    groups = [
        tuple(group)
        for _, group in groupby(
            sorted(references, key=lambda name: min(relatives(name))),
            key=lambda name: min(relatives(name)),
        )
    ]
    bundles = {
        name: bundle
        for names, bundle in bundles_without(references, groups, arguments.processes)
        for name in names
    }
    print(f"defaults learned after {time.monotonic() - started:.0f} s", file=sys.stderr)

    work = [
        (
            [case for case in found if (case.pipeline, case.options) not in failed],
            references[name],
            [references[other] for other in three_others(name) if other in references],
            bundles[name],
            traces,
        )
        for name, found in chosen.items()
        if name in references
    ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        results = [result for part in pool.map(_judge, work) for result in part]
    seconds = time.monotonic() - started
    print(written(results))
    if arguments.verbose:
        print(told(results))
    print(f"{len(results)} runs checked in {seconds:.0f} s", file=sys.stderr)
    if arguments.write:
        PAGE.write_text(written(results), encoding="utf-8")
    return 1 if failed else 0


def _judge(
    work: tuple[list[Case], Path, list[Path], Bundle, Traces],
) -> list[Result]:
    found, reference, others, bundle, traces = work
    # What the package brings along is part of how it learns: it must not know this pipeline either.
    learned = (learn([reference], bundle.corpus), learn(others, bundle.corpus), bundle.invariants)
    rules = dict(zip(WAYS, learned, strict=True))
    twins = {}
    results = []
    for case in found:
        path = traces.path((case.pipeline, case.options))
        shown = {way: reports(path, rules[way]) for way in WAYS}
        if case.title == TWIN:
            twins = {way: {rule for r in shown[way] for rule in r.rules} for way in WAYS}
        verdicts = {way: judge(case.bug, shown[way], twins[way]) for way in WAYS if case.bug}
        results.append(Result(case=case, reports=shown, verdicts=verdicts))
    return results


def _chosen(wanted: list[str]) -> dict[str, list[Case]]:
    if not wanted:
        return {name: cases(name) for name in pipelines()}
    chosen: dict[str, list[Case]] = {}
    for name, group in groupby(sorted(wanted), key=lambda word: word.partition(".")[0]):
        bugs = [word.partition(".")[2] for word in group]
        chosen[name] = cases(name, [] if "" in bugs else bugs)
    return chosen


def _arguments() -> argparse.Namespace:
    known = {
        word
        for name in pipelines()
        for word in (name, *(f"{name}.{case.title}" for case in cases(name) if case.bug))
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--verbose", action="store_true", help="print what was reported, too")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--traces", type=Path, default=ROOT / "build" / "quality")
    arguments = parser.parse_args()
    for word in arguments.cases:
        if word not in known:
            parser.error(f"expected a pipeline or pipeline.bug, got {word!r}")
    if arguments.write and arguments.cases:
        parser.error("--write needs the whole corpus: leave the cases out")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
