"""Leaves a tidy trace behind when the process is told to terminate."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_PAUSE_SECONDS = 0.5
_PATIENCE_SECONDS = 5.0


@contextmanager
def before_termination(close: Callable[[], None]) -> Iterator[None]:
    """Call *close* on SIGTERM, within the context, and then die of the signal as by default.

    A handler that the script installs replaces this one; where one is already installed, or the
    signal is ignored, nothing is done. A second signal kills at once.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    owner = os.getpid()
    closing = threading.Thread(target=_die_after, args=(close,), name="traincheck-close")
    closing.daemon = True

    def terminate(signal_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal_number, signal.SIG_DFL)
        # Forked workers inherit the handler, but not what there is to close.
        if os.getpid() != owner:
            os.kill(os.getpid(), signal_number)
        # Closing runs in a thread of its own, and the main thread stands still meanwhile; but it
        # may have been stopped holding a lock that closing needs, and then has to go on.
        closing.start()
        closing.join(_PAUSE_SECONDS)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if os.getpid() == owner:
            if closing.is_alive():
                closing.join()
            elif signal.getsignal(signal.SIGTERM) is terminate:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _die_after(close: Callable[[], None]) -> None:
    """Kill this process, whose SIGTERM has its default effect, after *close* or a while."""
    last_resort = threading.Timer(_PATIENCE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    last_resort.daemon = True
    last_resort.start()
    try:
        close()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
