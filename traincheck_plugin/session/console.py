"""Says things in the log of a training run, so that they are seen and spoil no progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

LOGGER = logging.getLogger("traincheck")


def say(text: str, level: int = logging.WARNING) -> None:
    """Log *text*; where nobody has configured logging, print it to stderr.

    Never raises: what is said must not stop what it is said about.
    """
    with suppress(Exception), _beside_progress_bars():
        if LOGGER.hasHandlers():
            LOGGER.log(level, text)
        else:
            # Looked up now: rich and notebooks replace it, to print above what is live.
            print(f"traincheck: {text}", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _beside_progress_bars() -> Iterator[None]:
    """Clear the bars of tqdm, where there are any, and draw them again afterwards."""
    tqdm: Any = sys.modules.get("tqdm")
    bars = getattr(tqdm, "tqdm", None)
    with bars.external_write_mode(file=sys.stderr) if bars is not None else nullcontext():
        yield
