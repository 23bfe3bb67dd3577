"""Finished calls and frames, cut into windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Calls, Frame, Window
from traincheck_plugin.recorder.context import ContextTracker
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings, is_capturing
from traincheck_plugin.recorder.sampling import Sampler
from traincheck_plugin.recorder.windows import Mark

Row = tuple[int, ...]
"""A call in the order of `traincheck_plugin.events.CALL_COLUMNS`."""

_END, _CONTEXT = 5, 8


@dataclass(frozen=True, slots=True)
class _Cut:
    """A window on its way to the sink, as soon as its numbers are back from the device."""

    window: Window
    ticket: int


class Reel:
    """Keeps what the present window has so far and hands finished windows to the sink.

    Attributes:
        rows: the calls of the training thread that ended in this window.
        frames: the frames taken in it.
        is_observed: whether sampling lets this window be recorded.
        num_left_out: calls of this window that were not.
    """

    def __init__(
        self,
        catalog: Catalog,
        sink: Callable[[Window], None],
        *,
        rank: int,
        sampler: Sampler,
        clock: Callable[[], tuple[int, int]],
        tracker: ContextTracker,
        readings: DeviceReadings,
        problems: Problems,
        on_observed: Callable[[bool], None],
    ) -> None:
        self.rows: list[Row] = []
        self.frames: list[Frame] = []
        self.is_observed = sampler.observes(tracker.step, 0, 0)
        self.num_left_out = 0
        self._catalog = catalog
        self._sink = sink
        self._rank = rank
        self._sampler = sampler
        self._clock = clock
        self._tracker = tracker
        self._readings = readings
        self._problems = problems
        self._on_observed = on_observed
        self._foreign: deque[Row] = deque()
        self._waiting: deque[_Cut] = deque()
        self._num_windows = 0

    def add_foreign(self, row: Row) -> None:
        """Add a call of another thread than the one that trains."""
        self._foreign.append(row)

    def drop_frames(self, call: int) -> None:
        """Forget the frames of *call*."""
        self.frames = [frame for frame in self.frames if frame.call != call]

    def mark(self) -> Mark:
        """Return the present moment, for a later `cut`."""
        return len(self.rows), len(self.frames), self.num_left_out

    def cut(self, mark: Mark | None, *, completed: bool) -> None:
        """End the window at *mark*, or here.

        Args:
            mark: a moment of this window.
            completed: whether it was a training window: what follows the mark then belongs to the
                next step.
        """
        num_rows, num_frames, num_left_out = self.mark() if mark is None else mark
        if not completed and not (num_rows or num_frames or num_left_out):
            if self._sampler.is_attending and not self.is_observed:
                self._begin(mark)
            return
        rows, later_rows = self.rows[:num_rows], self.rows[num_rows:]
        frames, later_frames = self.frames[:num_frames], self.frames[num_frames:]
        while self._foreign:
            rows.append(self._foreign.popleft())
        rows.sort(key=_end)
        was_observed = self.is_observed
        if completed:
            self._tracker.completed_window()
            later_rows = [self._moved(row) for row in later_rows]
            later_frames = [self._moved_frame(frame) for frame in later_frames]
        self.rows, self.frames = later_rows, later_frames
        self.num_left_out -= num_left_out
        if rows or frames or num_left_out:
            # Now, since what is found in it may have the next steps observed.
            self._emit(rows if was_observed else [], frames if was_observed else [], was_observed)
        self._begin(mark)

    def _begin(self, mark: Mark | None) -> None:
        """Decide whether the window that begins is observed."""
        was_observed = self.is_observed
        self.is_observed = self._sampler.observes(self._tracker.step, *self._clock())
        if mark is not None and not was_observed:
            # The first calls of the window that begins were not recorded.
            self.is_observed = False
        if not self.is_observed:
            self.rows, self.frames = [], []
        if self.is_observed != was_observed:
            self._on_observed(self.is_observed)

    @property
    def has_waiting(self) -> bool:
        """Whether a window waits for numbers from a device."""
        return bool(self._waiting)

    def leave_out(self) -> None:
        """Observe nothing more until the window ends, and forget what was observed of it."""
        if self.is_observed:
            self.num_left_out += len(self.rows)
            self.rows, self.frames = [], []
            self.is_observed = False
            self._on_observed(False)

    def finish(self) -> None:
        """Hand out what still waits for numbers from a device."""
        self._deliver()

    def _emit(self, rows: list[Row], frames: list[Frame], is_observed: bool) -> None:
        window = Window(
            index=self._num_windows,
            rank=self._rank,
            calls=Calls.from_rows(rows),
            frames=frames,
            catalog=self._catalog,
            observed=is_observed,
        )
        self._num_windows += 1
        ticket = self._readings.ticket()
        # One window waits while the device computes its numbers, so that nobody waits for the
        # device; without a device none waits.
        self._deliver()
        self._waiting.append(_Cut(window, ticket))
        if not ticket:
            self._deliver()

    def _deliver(self) -> None:
        while self._waiting and not is_capturing():
            cut = self._waiting.popleft()
            with self._problems:
                self._readings.resolve(cut.ticket)
            with self._problems:
                self._sink(cut.window)

    def _moved(self, row: Row) -> Row:
        context = self._tracker.at_present_step(row[_CONTEXT])
        return (*row[:_CONTEXT], context, *row[_CONTEXT + 1 :])

    def _moved_frame(self, frame: Frame) -> Frame:
        return replace(frame, context=self._tracker.at_present_step(frame.context))


def _end(row: Row) -> int:
    return row[_END]
