"""Takes the frames of this package out of the tracebacks of a user's errors."""

from __future__ import annotations

import dis
import os
from pathlib import Path
from types import TracebackType

import traincheck_plugin

_PACKAGE = str(Path(traincheck_plugin.__file__).parent) + os.sep


_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def remove_own_frames(error: BaseException) -> None:
    """Make *error*, and the errors it is chained to, look as if nothing had been observed.

    Besides the frames of this package, what only leads to them goes: torch handing a call to an
    observer, together with the first visit of the function that is then visited again; torch
    calling a module with hooks where it would call it without; and the import system, which
    python hides itself as long as nothing is in between.

    One difference stays: of a function that hands over under another name than its own (as
    `max_pool2d` does), the last line shown is where it did.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        entries = _without_module_hooks(_kept(_entries(current.__traceback__)))
        current.__traceback__ = _linked(entries)
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


def _without_module_hooks(entries: list[TracebackType]) -> list[TracebackType]:
    """Return *entries* with calls of modules as they are where nobody observes modules."""
    result: list[TracebackType] = []
    for entry in entries:
        code = entry.tb_frame.f_code
        if code.co_name == "inner" and result and _hooks_are_not_its_own(result[-1], entry):
            result[-1] = _at_first_call(result[-1])
        else:
            result.append(entry)
    return result


def _hooks_are_not_its_own(caller: TracebackType, entry: TracebackType) -> bool:
    """Return whether *caller* is `Module._call_impl`, taking hooks for a module without any."""
    code = caller.tb_frame.f_code
    if code.co_name != "_call_impl" or code.co_filename != entry.tb_frame.f_code.co_filename:
        return False
    module = caller.tb_frame.f_locals.get("self")
    return not any(getattr(module, hooks, True) for hooks in _MODULE_HOOKS)


def _at_first_call(entry: TracebackType) -> TracebackType:
    """Return *entry* moved to where its function first passes its arguments on.

    In `Module._call_impl` that is the call of `forward` without hooks.
    """
    for instruction in dis.get_instructions(entry.tb_frame.f_code):
        positions = instruction.positions
        if instruction.opname == "CALL_FUNCTION_EX" and positions and positions.lineno:
            return TracebackType(None, entry.tb_frame, instruction.offset, positions.lineno)
    return entry


def _linked(entries: list[TracebackType]) -> TracebackType | None:
    following = None
    for entry in reversed(entries):
        entry.tb_next = following
        following = entry
    return following
