"""Leaves a tidy trace behind when the process is told to terminate."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE_SECONDS = 2.0


@contextmanager
def before_termination(close: Callable[[], None]) -> Iterator[None]:
    """Call *close* on SIGTERM, within the context, and then die of the signal as by default.

    A handler that the script installs replaces this one; where one is already installed, or the
    signal is ignored, nothing is done. *close* runs in a thread of its own: the main thread may
    have been stopped while it held a lock that closing needs, and then dying wins.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    owner = os.getpid()

    def terminate(signal_number: int, _frame: FrameType | None) -> None:
        # Forked workers inherit the handler, but not what there is to close.
        if os.getpid() == owner:
            closing = threading.Thread(target=close, name="traincheck-close", daemon=True)
            closing.start()
            closing.join(_PATIENCE_SECONDS)
        signal.signal(signal_number, signal.SIG_DFL)
        os.kill(os.getpid(), signal_number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
