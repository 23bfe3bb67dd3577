"""What could not be observed: said once, never raised into the training."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch  # noqa: F401  # what follows is a part of it that cannot be imported first
from torch._C._dynamo import eval_frame


def _exchanged() -> Any:
    """Return what compiles the frames that run now, in versions of torch that only exchange it."""
    callback = eval_frame.set_eval_frame(None)
    eval_frame.set_eval_frame(callback)
    return callback


_get_callback: Callable[[], Any] = getattr(eval_frame, "get_eval_frame_callback", _exchanged)


class _Guarded(threading.local):
    """What each guard that a thread is inside of replaced."""

    def __init__(self) -> None:
        self.stack: list[Any] = []


class Problems:
    """A list of remarks without repetition, and a guard that turns failures into remarks.

    As a context manager it swallows every `Exception` of the recorder's own code and notes it, so
    that a failing probe never reaches the training; and it keeps `torch.compile` from compiling
    that code where it is called by compiled code. It is re-entrant and cheap.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._guarded = _Guarded()

    @property
    def is_own_code_running(self) -> bool:
        """Whether this thread is inside the guard."""
        return bool(self._guarded.stack)

    def note(self, text: str) -> None:
        """Add *text* unless it was said before."""
        if text not in self.texts:
            self.texts.append(text)

    def note_failure(self, error: Exception) -> None:
        """Note that the recorder's own code raised *error*."""
        place = traceback.extract_tb(error.__traceback__)[-1]
        # Some errors of torch go on for pages.
        reason = str(error).partition("\n")[0]
        self.note(
            f"recorder error: {type(error).__name__}: {reason} "
            f"({place.filename.rpartition('/')[2]}:{place.lineno})"
        )
        # The traceback's frames hold tensors of the training.
        error.__traceback__ = None

    def __enter__(self) -> Problems:
        compiling = _get_callback()
        if compiling is not None:
            eval_frame.set_eval_frame(None)
        self._guarded.stack.append(compiling)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        compiling = self._guarded.stack.pop()
        if compiling is not None:
            eval_frame.set_eval_frame(compiling)
        if isinstance(error, Exception):
            self.note_failure(error)
            return True
        return False
