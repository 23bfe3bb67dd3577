"""The page that the bench writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quality.corpus import Case, three_others
from benchmarks.quality.judging import Report, Verdict

WAYS = {
    "a": "learned from the healthy twin, another seed",
    "b": "learned from three other pipelines",
    "c": "the bundled invariants, learned without this pipeline",
}

INTRODUCTION = """\
# Quality

What TrainCheck finds, and what it reports where nothing is wrong, measured on the training scripts
in [tests/pipelines](../tests/pipelines). `make quality` runs all of them anew and writes this page;
`make quality CASES="vae lstm.lr_zero"` runs and prints a part.

Each bug is a run of a healthy script with one thing wrong. It is checked three times, with
invariants learned in different ways, never from the run itself:

- **(a)** from the healthy twin with another seed;
- **(b)** from three other pipelines;
- **(c)** from the rest of the corpus, as the bundled invariants are: the pipeline under test, and
  those that share its code, are left out.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was reported of a case, by way of learning; a bug is judged, too."""

    case: Case
    reports: Mapping[str, Sequence[Report]]
    verdicts: Mapping[str, Verdict]


def written(results: Sequence[Result]) -> str:
    """Return the page."""
    bugs = [result for result in results if result.case.bug]
    healthy = [result for result in results if not result.case.bug]
    parts = [INTRODUCTION, _totals(bugs, healthy)]
    if bugs:
        parts.append(_bugs(bugs))
    if healthy:
        parts.append(_healthy(healthy))
    return "\n".join(parts)


def told(results: Iterable[Result]) -> str:
    """Return what was reported, in words."""
    lines = []
    for result in results:
        case = result.case
        others = ", ".join(three_others(case.pipeline))
        lines.append(f"\n{case.pipeline}: {case.title} (b: {others})")
        if case.bug:
            lines.append(f"  wrong from step {case.bug.step}; cause: {case.bug.cause}")
        lines += [
            f"  {way} step {report.step} {report.severity}: {report.text}"
            for way, found in result.reports.items()
            for report in found
        ]
    return "\n".join(lines)


def _totals(bugs: Sequence[Result], healthy: Sequence[Result]) -> str:
    def row(name: str, value: Callable[[str], str]) -> tuple[str, ...]:
        return (name, *(value(way) for way in WAYS))

    def count(way: str, fits: Callable[[Verdict], bool]) -> int:
        return sum(fits(result.verdicts[way]) for result in bugs)

    def share(way: str) -> str:
        found = count(way, lambda v: v.found)
        named = count(way, lambda v: v.found and v.names_cause)
        return f"{named} ({100 * named / found:.0f} %)" if found else "0"

    rows = [
        row(f"bugs found, of {len(bugs)}", lambda w: str(count(w, lambda v: v.found))),
        row(
            "found within one step of the first wrong one",
            lambda w: str(count(w, lambda v: v.found and v.late <= 1)),
        ),
        row("the first diagnosis names the cause", share),
        row(
            f"healthy runs with a report, of {len(healthy)}",
            lambda w: str(sum(bool(result.reports[w]) for result in healthy)),
        ),
        row(
            "reports on healthy runs",
            lambda w: str(sum(len(result.reports[w]) for result in healthy)),
        ),
    ]
    return _table(("", *(f"({way})" for way in WAYS)), rows)


def _bugs(results: Sequence[Result]) -> str:
    rows = [
        (
            f"{result.case.pipeline}: {result.case.title}",
            *(_cell(result.verdicts[way]) for way in WAYS),
        )
        for result in results
    ]
    return (
        "## Bugs\n\n"
        "Where one was found: how many training steps after the first wrong one, how grave the\n"
        "report is, and whether the first diagnosis names the true cause.\n\n"
        + _table(("bug", *(f"({way})" for way in WAYS)), rows)
    )


def _cell(verdict: Verdict) -> str:
    if not verdict.found:
        return "**missed**"
    return f"+{verdict.late} {verdict.severity}, {'cause' if verdict.names_cause else 'no cause'}"


def _healthy(results: Sequence[Result]) -> str:
    noisy = [result for result in results if any(result.reports.values())]
    text = f"## Healthy runs\n\n{len(results)} healthy runs of the pipelines; "
    if not noisy:
        return text + "nothing is reported of any.\n"
    rows = [
        (
            f"{result.case.pipeline}: {result.case.title}",
            *(str(len(result.reports[way]) or "") for way in WAYS),
        )
        for result in noisy
    ]
    return (
        text
        + "reports of `warning` or above on these:\n\n"
        + _table(("run", *(f"({way})" for way in WAYS)), rows)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
