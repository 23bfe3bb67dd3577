"""Where one window ends and the next begins.

A training window is closed before the first call of the next batch. Which call that is can show
only later (is this forward the next batch, or the second network of a GAN?), so a window may be
cut at a *mark*: a moment between two outermost calls that is remembered for the purpose.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from traincheck_plugin.vocabulary import Role

MAX_CALLS = 4096
"""Calls of a window outside training steps."""

MAX_CALLS_WITHOUT_STEP = 65536
MIN_OVERDUE = 32
"""A window of training is cut without a step after this many backward calls, or four times as
many as any completed window had: a step that never comes must not hide what happens."""


Mark = tuple[int, int, int]
"""A moment: how many calls and frames the window had, and how many calls were left out of it."""


class Cutter(Protocol):
    """Where calls and frames are kept."""

    def mark(self) -> Mark:
        """Return the present moment."""

    def cut(self, mark: Mark | None, *, completed: bool) -> None:
        """End the window at *mark* (None: here); *completed* if a training window."""


class Segmenter:
    """Decides when to cut, from the outermost calls of the training thread.

    Attributes:
        has_stepped: whether any optimizer stepped so far.

    Args:
        cutter: cuts.
        optimizers: gives the optimizers that are known and alive.
    """

    def __init__(self, cutter: Cutter, optimizers: Callable[[], Iterable[Any]]) -> None:
        self._cutter = cutter
        self._optimizers = optimizers
        self._stepped: weakref.WeakSet[Any] = weakref.WeakSet()
        self._mark: Mark | None = None
        self._backwards_before_mark = 0
        self._is_data_run = False
        self._is_training = False
        self._saw_validation = False
        self._has_begun = False
        self._backwards = 0
        self._usual_backwards = 0
        self._has_completed = False
        self.has_stepped = False

    @property
    def is_complete(self) -> bool:
        """Whether an optimizer stepped in the present window, which lacks only its end."""
        return bool(self._stepped)

    def before(self, role: Role, optimizer: Any | None, training: bool | None, calls: int) -> None:
        """Cut, if needed, before an outermost call.

        Args:
            role: of the call.
            optimizer: the one the call is about.
            training: for a forward, whether it trains; None for modules without parameters.
            calls: how many calls the window has.
        """
        if self._stepped:
            self._after_a_step(role, optimizer, training)
        if self._stepped:
            return
        if role == "data":
            self._before_data(calls)
            return
        self._is_data_run = False
        if role in ("zero_grad", "backward", "step") or (role == "forward" and training):
            if not self._is_training:
                self._cut(self._mark)
                self._is_training = True
            elif self._is_overdue(calls) and role in ("zero_grad", "forward"):
                self._cut()
                self._is_training = True
            # A framework may release the gradients of a model before it evaluates that.
            self._has_begun |= role != "zero_grad" or optimizer is not None
        elif role == "forward" and training is False and self._mark is not None:
            # A frozen teacher looks the same: only the next batch shows that it was validation.
            self._saw_validation = True
        if not self._is_training and calls >= MAX_CALLS:
            self._cut()

    def _before_data(self, calls: int) -> None:
        if self._is_data_run:
            return
        self._is_data_run = True
        if self._is_overdue(calls) or (not self._is_training and calls >= MAX_CALLS):
            self._cut()
        if self._saw_validation and not self._backwards:
            self._is_training = False
        if not self._backwards:
            self._set_mark()

    def _after_a_step(self, role: Role, optimizer: Any | None, training: bool | None) -> None:
        clears_again = role == "zero_grad" and optimizer in self._stepped
        is_next = (
            role == "data"
            or (role == "forward" and training is False)
            or (role == "step" and optimizer in self._stepped)
        )
        if is_next:
            self._cut(self._mark, completed=True)
        elif (
            clears_again
            or (role == "zero_grad" and optimizer is None)
            or (role == "forward" and training)
        ):
            # The next batch, unless another optimizer is still to step in this one. In the first
            # window there may be some that are not known yet.
            is_sure = self._has_completed or clears_again
            if is_sure and self._all_stepped():
                self._cut(self._mark, completed=True)
            elif self._mark is None:
                self._set_mark()
        elif role == "backward" and self._mark is not None and self._all_stepped():
            # Steps within the backward, with nothing else that tells one batch from the next.
            self._cut(self._mark, completed=True)

    def _all_stepped(self) -> bool:
        return all(one in self._stepped for one in self._optimizers())

    def stepped(self, optimizer: Any) -> None:
        """Note a completed step; the batch goes on until something of the next one comes."""
        self._stepped.add(optimizer)
        self.has_stepped = True
        self._is_training = True
        self._mark = None

    def passed(self, optimizer: Any) -> bool:
        """Note a step of which nothing else was seen; return whether it was in another batch.

        Without what comes between, only a second step of the same optimizer tells that.
        """
        is_next = optimizer in self._stepped
        if is_next and len(self._stepped) == 1:
            return True
        if is_next:
            self._stepped.clear()
        self._stepped.add(optimizer)
        return is_next

    def went_backward(self) -> None:
        """Note a completed backward call."""
        self._backwards += 1

    def is_too_long(self, calls: int) -> bool:
        """Return whether the window has so many calls that it is to be cut at once."""
        return calls >= (MAX_CALLS_WITHOUT_STEP if self._is_training else MAX_CALLS)

    def end_batch(self) -> None:
        """Cut the window if it is a completed one: the batch is known to be over."""
        if self._stepped:
            self._cut(self._mark, completed=True)

    def cut_here(self) -> None:
        """Cut the window: it became too long, or the recording ends."""
        was_training = self._is_training
        self._cut(completed=bool(self._stepped))
        self._is_training = was_training

    def cut_between(self) -> None:
        """Cut the window if nothing of a training step was in it."""
        if not self._has_begun and not self._stepped:
            self._cut()

    def _set_mark(self) -> None:
        self._mark = self._cutter.mark()
        self._backwards_before_mark = self._backwards

    def _is_overdue(self, calls: int) -> bool:
        limit = max(MIN_OVERDUE, 4 * self._usual_backwards)
        return self._backwards >= limit or calls >= MAX_CALLS_WITHOUT_STEP

    def _cut(self, mark: Mark | None = None, *, completed: bool = False) -> None:
        before = self._backwards if mark is None else self._backwards_before_mark
        if completed:
            self._usual_backwards = max(self._usual_backwards, before)
            self._has_completed = True
            # What followed the mark is training: a zero_grad or a forward made it.
            self._is_training = self._has_begun = mark is not None
        else:
            self._is_training = self._has_begun = False
        self._backwards -= before
        self._stepped.clear()
        self._mark = None
        self._is_data_run = False
        self._saw_validation = False
        self._cutter.cut(mark, completed=completed)
