"""Words for what ``traincheck-collect`` says on its one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

_MOST_PROBLEMS = 3


def joined(problems: Sequence[str]) -> str:
    """Return the first of *problems*, and how many more there are."""
    more = len(problems) - _MOST_PROBLEMS
    ending = [f"and {more} more in end.json"] if more > 0 else []
    return "; ".join([*problems[:_MOST_PROBLEMS], *ending])


def count_of(number: int, noun: str) -> str:
    """Return such as ``1,200 calls``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_of(num_bytes: int) -> str:
    """Return such as ``0.6 MB``."""
    return f"{num_bytes / 1e6:,.1f} MB"


def say(line: str) -> None:
    """Print a line of this command on stderr, after what the script printed."""
    # The script may have closed or replaced either stream.
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        print(f"traincheck-collect: {line}", file=sys.stderr)
