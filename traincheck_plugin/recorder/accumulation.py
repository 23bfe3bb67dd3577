"""Over how many micro-batches a framework spreads a step: told by what calls the backward."""

from __future__ import annotations

from types import FrameType
from typing import Any

SETTINGS = ("gradient_accumulation_steps", "accumulate_grad_batches")
"""Attributes that tell it: of an `accelerate.Accelerator`, and of a Trainer of Lightning. Trainers
that others wrote have taken over the names."""

MAX_FRAMES = 48
"""Callers that are looked at. Between a Trainer of Lightning and the backward there are 30."""


def micro_batches(frame: FrameType | None) -> int:
    """Return how many micro-batches the nearest caller with such a setting accumulates.

    Args:
        frame: of the innermost caller.

    Returns:
        The number; 0 where no caller tells.
    """
    for _ in range(MAX_FRAMES):
        if frame is None:
            break
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            number = _told_by(frame.f_locals.get("self"))
            if number:
                return number
        frame = frame.f_back
    return 0


def _told_by(owner: Any) -> int:
    known = getattr(owner, "__dict__", ())
    for name in SETTINGS:
        # Nothing is asked for that may not be there: to look for it may run code of the user's.
        if name in known or hasattr(type(owner), name):
            number = getattr(owner, name)
            if type(number) is int and number > 0:
                return number
    return 0
