"""Calls that have begun and not ended, per thread."""

from __future__ import annotations

import threading
from types import CodeType, FrameType
from typing import Any

from traincheck_plugin.recorder.sources import is_running
from traincheck_plugin.vocabulary import NONE, Role

TRANSPARENT: frozenset[Role] = frozenset({"framework", "instrumented"})
"""Roles whose calls may span several batches: what they contain counts as outermost."""

LISTENING: frozenset[Role] = TRANSPARENT | {"forward"}
"""Roles inside whose calls functions are recorded."""


class OpenCall:
    """A call that has begun and not ended.

    Attributes:
        subject: the object it is called on.
        optimizer: the optimizer it is about.
        counts: whether it counts for steps, stages and windows.
        is_muting: whether functions are not listened to because of it.
        is_observed: whether it will be recorded.
        has_begin_frames: whether its begin frames were taken (with a closure, that is later).
        num_reentered: how often the same call was entered again from within: `super().step()`.
        trains: whether it is a forward with gradients of a module in training mode.
    """

    __slots__ = (
        "_code",
        "_frame_id",
        "api",
        "begin",
        "begin_ns",
        "call",
        "context",
        "counts",
        "has_begin_frames",
        "inputs",
        "is_muting",
        "is_observed",
        "num_reentered",
        "optimizer",
        "parent",
        "role",
        "source",
        "subject",
        "subject_code",
        "trains",
    )

    def __init__(self, role: Role, api: int, subject: Any, optimizer: Any) -> None:
        self.role = role
        self.api = api
        self.subject = subject
        self.optimizer = optimizer
        self.call = self.parent = self.source = self.inputs = self.subject_code = NONE
        self.begin = self.begin_ns = self.context = self.num_reentered = 0
        self.counts = True
        self.is_muting = self.is_observed = self.has_begin_frames = self.trains = False
        self._frame_id = 0
        self._code: CodeType | None = None

    def ends_with(self, frame: FrameType) -> None:
        """Note the frame that the call ends with: no ``finally`` of ours will close it.

        The frame itself is not kept, for it holds tensors.
        """
        self._frame_id = id(frame)
        self._code = frame.f_code

    def is_stale(self) -> bool:
        """Return whether the call ended without telling us."""
        return self._code is not None and not is_running(self._frame_id, self._code)


class ThreadState(threading.local):
    """What one thread is in the middle of.

    Attributes:
        stack: open calls, outermost first.
        number: small number of the thread; 0 for the one that trains, `NONE` before its first call.
        num_opaque: open calls that belong to one batch.
        root_id: id of the module whose forward is the outermost under way, or 0.
        root_depth: how often that module is entered again from within.
    """

    def __init__(self) -> None:
        self.stack: list[OpenCall] = []
        self.ident = threading.get_ident()
        self.number = NONE
        self.num_opaque = 0
        self.root_id = 0
        self.root_depth = 0

    def is_within(self, role: Role) -> bool:
        """Return whether a call of *role* is under way."""
        return any(entry.role == role for entry in self.stack)

    def find(self, role: Role, subject: Any) -> OpenCall | None:
        """Return the innermost open call of *role* on *subject*."""
        for entry in reversed(self.stack):
            if entry.role == role and entry.subject is subject:
                return entry
        return None


class Doorbell:
    """What calls the recorder from code that runs often, and can be put out of the way."""

    def pause(self) -> None:
        """Call no more, at no cost, until `resume`."""

    def resume(self) -> None:
        """Call again."""


class Silencer:
    """Where functions can be muted: the functions probe overrides it, else nothing listens."""

    def mute(self) -> None:
        """Stop listening until the matching `unmute`."""

    def unmute(self) -> None:
        """Listen again."""
