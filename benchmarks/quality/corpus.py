"""What is run: every pipeline of the corpus, healthy in several ways, and with each of its bugs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.pipelines.catalog import BUGS, Bug, family
from tools.default_invariants import scripts

REFERENCE = ("--seed", "1")
"""What is learned from."""

HEALTHY = {
    "seed 2": ("--seed", "2"),
    "seed 3, batches of 24, 3 epochs": ("--seed", "3", "--batch-size", "24", "--epochs", "3"),
}
"""Healthy runs that must pass in silence. A bug is seeded into the first of them."""

TWIN = next(iter(HEALTHY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run to check: of a pipeline, healthy or with a bug."""

    pipeline: str
    title: str
    options: tuple[str, ...]
    bug: Bug | None = None


def pipelines() -> list[str]:
    """Return the names of all pipelines, in order."""
    return sorted(scripts())


def cases(pipeline: str, wanted: Sequence[str] = ()) -> list[Case]:
    """Return the cases of a pipeline, its healthy twin first.

    Args:
        pipeline: its name.
        wanted: bugs to leave the others out for; all, when empty.
    """
    healthy = [
        Case(pipeline=pipeline, title=title, options=options) for title, options in HEALTHY.items()
    ]
    return healthy + [
        Case(pipeline=pipeline, title=name, options=(*HEALTHY[TWIN], "--bug", name), bug=bug)
        for name, bug in BUGS.get(pipeline, {}).items()
        if not wanted or name in wanted
    ]


def relatives(pipeline: str) -> set[str]:
    """Return the pipelines that share code with *pipeline*, itself among them."""
    return {other for other in pipelines() if _family(other) == _family(pipeline)}


def three_others(pipeline: str) -> list[str]:
    """Return the three pipelines that (b) learns from.

    They lie a quarter of the corpus apart: frameworks share a prefix, so names that are far apart
    are different kinds of pipelines.
    """
    names = pipelines()
    position, number = names.index(pipeline), len(names)
    chosen: list[str] = []
    for quarter in (1, 2, 3):
        start = position + quarter * number // 4
        candidates = (names[(start + shift) % number] for shift in range(number))
        chosen.append(
            next(
                c
                for c in candidates
                if c not in relatives(pipeline) | {r for other in chosen for r in relatives(other)}
            )
        )
    return chosen


def _family(pipeline: str) -> str:
    return family(pipeline) if pipeline in BUGS else pipeline
