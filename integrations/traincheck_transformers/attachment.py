"""What a callback of the Trainer is not told: that training ends by an exception, and what it logs.

No event is called when `Trainer.train` is left by an exception, and `on_log` comes too late: the
entry of the history is made, and the loggers, which stand first in line, have got theirs. Both are
had from the trainer itself, while it trains.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import Trainer

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.problems import Problems

ENCLOSING = (
    "_run_epoch",
    "_evaluate",
    "_finalize_training",
    # Of versions before 5, whose epochs are no methods:
    "get_batch_samples",
    "training_step",
    "_maybe_log_save_evaluate",
)
"""Methods of the Trainer in which training goes on, the private ones as far as a version has them.
An exception that passes through none of them is noticed when the training's frame is gone."""

_KEY = "__traincheck__"


class Attachment:
    """Holds on to the training that called it, until `detach`; leaves nothing behind.

    Args:
        on_exception: called with what training is left by; None where that is not known. May be
            called more than once.
        metrics: gives what to add to the entries of the training log; None: nothing.
    """

    def __init__(
        self,
        on_exception: Callable[[BaseException | None], None],
        metrics: Callable[[], dict[str, float]] | None,
    ) -> None:
        self._patches = Patches(Problems())
        self._finalizer: Any = None
        found = _training()
        if found is None:
            return
        frame, trainer = found
        for name in ENCLOSING:
            method = getattr(trainer, name, None)
            if method is not None:
                self._patches.set(trainer, name, _guarded(method, on_exception))
        handler = trainer.callback_handler
        self._patches.set(handler, "call_event", _guarded(handler.call_event, on_exception))
        if metrics is not None:
            self._patches.set(trainer, "log", _with_metrics(trainer.log, metrics))
        # The traceback of an exception that somebody keeps holds the frame, so that this alone
        # would tell too late.
        presence = _Presence()
        frame.f_locals[_KEY] = presence
        self._finalizer = weakref.finalize(presence, on_exception, None)

    def detach(self) -> None:
        """Let go of the trainer."""
        self._patches.undo()
        if self._finalizer is not None:
            self._finalizer.detach()


class _Presence:
    """Lives as long as the frame that it is kept in."""


def _training() -> tuple[FrameType, Trainer] | None:
    """Return the trainer that called us, and the frame in which it trains."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals.get("self")
            if isinstance(owner, Trainer):
                return frame, owner
        frame = frame.f_back
    return None


def _guarded(
    method: Callable[..., Any], on_exception: Callable[[BaseException | None], None]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except BaseException as error:
            on_exception(error)
            raise

    return guarded


def _with_metrics(
    log: Callable[..., None], metrics: Callable[[], dict[str, float]]
) -> Callable[..., None]:
    @functools.wraps(log)
    def log_with_metrics(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # Those of an evaluation and of the end are returned to the user, who asked for no others.
        if "loss" in logs:
            logs.update(metrics())
        log(logs, *args, **kwargs)

    return log_with_metrics
