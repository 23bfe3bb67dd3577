"""Takes the frames of this package out of the tracebacks of a user's errors."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import traincheck_plugin

_PACKAGE = str(Path(traincheck_plugin.__file__).parent) + os.sep


def remove_own_frames(error: BaseException) -> None:
    """Make *error*, and the errors it is chained to, look as if nothing had been observed.

    Three kinds of frames go: those of this package; that of torch which hands a call to an
    observer, together with the first visit of the function whose second visit follows; and those
    of the import system just before ours, which python hides itself when ours are not there.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _linked(_kept(_entries(current.__traceback__)))
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def _entries(traceback: TracebackType | None) -> list[TracebackType]:
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    return entries


def _kept(entries: list[TracebackType]) -> list[TracebackType]:
    kept: list[TracebackType] = []
    was_handed_over = False
    for entry in entries:
        if _is_own(entry):
            while kept and (_hands_over(kept[-1]) or _imports(kept[-1])):
                was_handed_over |= _hands_over(kept.pop())
            continue
        if was_handed_over and kept and kept[-1].tb_frame.f_code is entry.tb_frame.f_code:
            kept.pop()
        was_handed_over = False
        kept.append(entry)
    return kept


def _is_own(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_filename.startswith(_PACKAGE)


def _hands_over(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_name == "handle_torch_function"


def _imports(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_filename.startswith("<frozen importlib")


def _linked(entries: list[TracebackType]) -> TracebackType | None:
    following = None
    for entry in reversed(entries):
        entry.tb_next = following
        following = entry
    return following
