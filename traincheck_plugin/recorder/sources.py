"""Which line of the user's code led to a call."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType

import torch

from traincheck_plugin.catalog import Interner
from traincheck_plugin.vocabulary import NONE

_USER, _LIBRARY, _INTERNAL = 0, 1, 2

_TORCH = str(Path(torch.__file__).parent) + os.sep
_SELF = str(Path(__file__).resolve().parents[1]) + os.sep
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_ADAPTERS = tuple(
    f"{os.sep}{name}{os.sep}"
    for name in ("traincheck_lightning", "traincheck_accelerate", "traincheck_transformers")
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Sources:
    """Finds and interns the nearest line of user code of a frame."""

    def __init__(self, interner: Interner[str]) -> None:
        self._interner = interner
        self._kinds: dict[CodeType, int] = {}
        self._lines: dict[tuple[CodeType, int], int] = {}
        self._directory = str(Path.cwd()) + os.sep

    def here(self, frame: FrameType | None) -> int:
        """Return the code of the user's line at or above *frame*.

        Where no user code is on the stack, the nearest frame outside torch stands in.
        """
        kinds = self._kinds
        fallback: FrameType | None = None
        while frame is not None:
            code = frame.f_code
            kind = kinds.get(code)
            if kind is None:
                kind = kinds[code] = _kind_of(code.co_filename)
            if kind == _USER:
                return self._line(frame, code)
            if kind == _LIBRARY and fallback is None:
                fallback = frame
            frame = frame.f_back
        return NONE if fallback is None else self._line(fallback, fallback.f_code)

    def is_user(self, code: CodeType) -> bool:
        """Return whether code is the user's."""
        kind = self._kinds.get(code)
        if kind is None:
            kind = self._kinds[code] = _kind_of(code.co_filename)
        return kind == _USER

    def _line(self, frame: FrameType, code: CodeType) -> int:
        key = (code, frame.f_lasti)
        line = self._lines.get(key)
        if line is None:
            path = code.co_filename
            if path.startswith(self._directory):
                path = path[len(self._directory) :]
            elif path.startswith(os.sep):
                path = Path(path).name
            text = f"{path}:{frame.f_lineno} in {code.co_name}"
            line = self._lines[key] = self._interner.code(text)
        return line


def _kind_of(filename: str) -> int:
    if filename.startswith((_TORCH, _SELF)) or any(part in filename for part in _ADAPTERS):
        return _INTERNAL
    if any(part in filename for part in _INSTALLED):
        return _LIBRARY
    if filename.startswith((_STANDARD_LIBRARY, "<frozen ")):
        return _LIBRARY
    return _USER


def is_running(frame_id: int, code: CodeType) -> bool:
    """Return whether the frame with this id and code is on the current thread's stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame) == frame_id and frame.f_code is code:
            return True
        frame = frame.f_back
    return False
