"""A diagnosis as lines of text: for the console, and for the log of a run that goes on."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from traincheck_plugin.checker.diagnosis import Diagnosis

LABEL_WIDTH = 10
"""Wide enough for the longest severity."""


def printable(text: str) -> str:
    """Return *text* on one line and without control characters.

    Names of variables and messages come out of a trace; they must not steer a terminal.
    """
    return "".join(c if c.isprintable() else " " for c in text)


def count_of(number: int, noun: str) -> str:
    """Return ``1 step``, ``1,000 steps``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def diagnosis_block(
    diagnosis: Diagnosis, width: int = 80, *, is_final: bool = True
) -> list[tuple[str, str]]:
    """Return the lines of a diagnosis as (label, text), the label empty where a line goes on.

    How often it was seen is only told when it is *is_final*.

    Words are kept whole, so that names and ``file:line`` can be copied; a word longer than
    *width* makes its line longer.
    """
    rows = [(diagnosis.severity.upper(), diagnosis.message)]
    if diagnosis.cause:
        rows.append(("  cause", diagnosis.cause))
    rows.append(("  first", first_occurrence(diagnosis)))
    if is_final:
        rows.append(("  seen", occurrences(diagnosis)))
    lines = [line for label, text in rows for line in _wrapped(label, text, width)]
    if diagnosis.source:
        # Never wrapped: a path may hold spaces.
        where = (_label("  where"), printable(diagnosis.source))
        position = next(i for i, (label, _) in enumerate(lines) if label == _label("  first"))
        lines.insert(position, where)
    return lines


def first_occurrence(diagnosis: Diagnosis) -> str:
    """Return when and where the first violation happened."""
    first = diagnosis.first
    ranks = sorted({violation.rank for violation in diagnosis.violations})
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return (
        f"step {first.step}, epoch {first.epoch}, {printable(first.stage)}, "
        f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"
    )


def occurrences(diagnosis: Diagnosis) -> str:
    """Return how often it happened, until when, and how many invariants tell of it."""
    most = max(violation.num_occurrences for violation in diagnosis.violations)
    last = max(violation.last_step for violation in diagnosis.violations)
    invariants = {id(violation.invariant) for violation in diagnosis.violations}
    times = "once" if most == 1 else f"{most:,} times, last at step {last}"
    return f"{times}; {count_of(len(invariants), 'invariant')} failed"


def _label(text: str) -> str:
    return text.ljust(LABEL_WIDTH)


def _wrapped(label: str, text: str, width: int) -> Iterator[tuple[str, str]]:
    lines = textwrap.wrap(
        printable(text),
        max(width - LABEL_WIDTH, 20),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, line in enumerate(lines or [""]):
        yield _label("" if number else label), line
