"""The tape: open calls per thread, finished calls and frames, cut into windows."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from traincheck_plugin.events import NONE, Api, Calls, Catalog, Frame, Role, Window
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.context import ContextTracker
from traincheck_plugin.recorder.frames import FrameTaker
from traincheck_plugin.recorder.naming import Labels, method_names
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.sampling import Sampling
from traincheck_plugin.recorder.signatures import Signatures
from traincheck_plugin.recorder.sources import Sources, is_running
from traincheck_plugin.recorder.variables import Variables
from traincheck_plugin.recorder.windows import Segmenter

Row = tuple[int, ...]

TRANSPARENT: frozenset[Role] = frozenset({"framework", "instrumented"})
"""Roles whose calls may span several batches: what they contain counts as outermost."""

LISTENING: frozenset[Role] = frozenset({"forward", "framework", "instrumented"})
"""Roles inside whose calls functions are recorded."""


class OpenCall:
    """A call that has begun and not ended."""

    __slots__ = (
        "api",
        "begin",
        "begin_ns",
        "call",
        "code",
        "context",
        "counts",
        "frame_id",
        "has_begin_frames",
        "inputs",
        "is_muting",
        "is_observed",
        "optimizer",
        "parent",
        "reentered",
        "role",
        "source",
        "subject",
        "subject_code",
    )

    def __init__(self, role: Role, api: int, subject: Any, optimizer: Any) -> None:
        self.role = role
        self.api = api
        self.subject = subject
        self.optimizer = optimizer
        self.call = self.parent = self.source = self.inputs = self.subject_code = NONE
        self.begin = self.begin_ns = self.context = 0
        self.counts = True
        self.frame_id = 0
        self.code: CodeType | None = None
        self.is_muting = self.is_observed = self.has_begin_frames = False
        self.reentered = 0


class ThreadState(threading.local):
    """What one thread is in the middle of."""

    def __init__(self) -> None:
        self.stack: list[OpenCall] = []
        self.ident = threading.get_ident()
        self.number = NONE
        self.num_opaque = 0
        self.root_id = 0
        self.root_depth = 0


class Silencer:
    """Where functions are not listened to: the functions probe, or nothing at all."""

    def mute(self) -> None:
        """Stop listening until the matching `unmute`."""

    def unmute(self) -> None:
        """Listen again."""


class Tape:
    """Takes the begin and end of calls from the probes and hands windows to the sink."""

    def __init__(
        self,
        plan: Plan,
        sink: Callable[[Window], None],
        *,
        rank: int,
        world_size: int,
        sampling: Sampling,
        models_to_track: tuple[str, ...],
        problems: Problems,
    ) -> None:
        self.catalog = Catalog()
        self.problems = problems
        self.labels = Labels(self.catalog)
        self.sources = Sources(self.catalog.sources)
        self.signatures = Signatures(self.catalog.signatures)
        self.tracker = ContextTracker(self.catalog, rank, world_size)
        self.variables = Variables(self.catalog, self.labels, models_to_track)
        self.next_sequence: Callable[[], int] = itertools.count().__next__
        self.next_call: Callable[[], int] = itertools.count().__next__
        self.frames = FrameTaker(
            plan, self.catalog, self.labels, self.variables, problems, self.next_sequence
        )
        self.segmenter = Segmenter(self)
        self.threads = ThreadState()
        self.silencer = Silencer()
        self.rows: list[Row] = []
        self.start_ns = time.perf_counter_ns()
        self.is_active = False
        self.is_observed = sampling.observes(0)
        self.num_backwards_open = 0
        self._sink = sink
        self._rank = rank
        self._sampling = sampling
        self._frames: list[Frame] = []
        self._foreign: deque[Row] = deque()
        self._num_windows = 0
        self._num_unobserved = 0
        self._training_thread = threading.get_ident()
        self._thread_numbers = itertools.count(1)
        self._apis: dict[tuple[type | None, str], int] = {}

    def start(self) -> None:
        """Begin to record; the calling thread is the training thread."""
        self._training_thread = threading.get_ident()
        self.threads.number = 0
        self.start_ns = time.perf_counter_ns()
        self.is_active = True
        if not self.is_observed:
            self.silencer.mute()

    def stop(self) -> None:
        """Close what is open, emit the last window and record nothing more."""
        if not self.is_active:
            return
        with self.problems:
            for entry in reversed(self.threads.stack):
                self._finish(self.threads, entry, "", NONE)
            self.threads.stack.clear()
            self.threads.num_opaque = 0
        self.is_active = False
        with self.problems:
            self.segmenter.cut_here()

    def function_api(self, name: str, role: Role, *aliases: str) -> int:
        """Return the code of a function by its public name."""
        key = (None, name)
        code = self._apis.get(key)
        if code is None:
            names = tuple(dict.fromkeys((name, *aliases)))
            code = self._apis[key] = self.catalog.apis.code(Api(name=name, names=names, role=role))
        return code

    def method_api(self, cls: type, method: str, role: Role, root: type) -> int:
        """Return the code of *method* of *cls*, which answers to its bases' names up to *root*."""
        key = (cls, method)
        code = self._apis.get(key)
        if code is None:
            names = method_names(cls, method, root)
            api = Api(name=names[0], names=names, role=role)
            code = self._apis[key] = self.catalog.apis.code(api)
        return code

    def around(
        self,
        role: Role,
        api: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        subject: Any = None,
        optimizer: Any = None,
        counts: bool = True,
        is_summarised: bool = False,
    ) -> Any:
        """Call *function* and record the call."""
        inputs = NONE
        if is_summarised and self.is_observed:
            with self.problems:
                inputs = self.signatures.arguments(args, kwargs)
        entry = self.open(
            role, api, subject=subject, optimizer=optimizer, inputs=inputs, counts=counts
        )
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self.close(entry, type(error).__name__)
            raise
        outputs = NONE
        if is_summarised and entry is not None and entry.is_observed and result is not None:
            with self.problems:
                outputs = self.signatures.result(result)
        self.close(entry, "", outputs)
        return result

    def open(
        self,
        role: Role,
        api: int,
        *,
        subject: Any = None,
        optimizer: Any = None,
        training: bool | None = None,
        inputs: int = NONE,
        counts: bool = True,
        hook_frame: Any = None,
        is_deferring_frames: bool = False,
    ) -> OpenCall | None:
        """Begin a call; None if that failed or nothing is recorded.

        Args:
            role: of the call.
            api: code of what is called.
            subject: object that is called on.
            optimizer: the one the call is about.
            training: for a forward, whether it trains.
            inputs: code of the signature of the arguments.
            counts: whether the call counts for steps, stages and windows.
            hook_frame: the frame that ends with the call, where no ``finally`` of ours closes it.
            is_deferring_frames: whether the caller takes the begin frames later.
        """
        if not self.is_active:
            return None
        with self.problems:
            thread = self.threads
            stack = thread.stack
            if stack:
                self._drop_stale(thread)
            if optimizer is not None:
                self.variables.add_optimizer(optimizer)
            if counts:
                self._before(role, thread, optimizer, training)
            entry = OpenCall(role, api, subject, optimizer)
            entry.counts = counts
            if hook_frame is not None:
                entry.frame_id, entry.code = id(hook_frame), hook_frame.f_code
            entry.is_observed = self.is_observed
            is_training_thread = thread.ident == self._training_thread
            if is_training_thread:
                # Our own reading of tensors must not be recorded either.
                self.silencer.mute()
                entry.is_muting = True
            if entry.is_observed:
                if thread.number == NONE:
                    thread.number = next(self._thread_numbers)
                entry.call = self.next_call()
                entry.parent = stack[-1].call if stack else NONE
                entry.inputs = inputs
                entry.source = self.sources.here(sys._getframe(1))
                if subject is not None:
                    entry.subject_code = self.labels.code(subject)
                entry.begin = self.next_sequence()
                self.refresh(entry)
                if not is_deferring_frames:
                    self.take_begin_frames(entry)
            else:
                self._num_unobserved += 1
            stack.append(entry)
            if role == "backward":
                self.num_backwards_open += 1
            if role not in TRANSPARENT:
                thread.num_opaque += 1
            if entry.is_muting and role in LISTENING:
                entry.is_muting = False
                self.silencer.unmute()
            entry.begin_ns = time.perf_counter_ns() - self.start_ns
            return entry
        return None

    def refresh(self, entry: OpenCall) -> None:
        """Note the present context as that of *entry*."""
        since = NONE
        if entry.optimizer is not None and entry.role in ("construct", "step", "zero_grad"):
            since = self.tracker.steps_since_clear(entry.optimizer)
        entry.context = self.tracker.code(since)

    def take_begin_frames(self, entry: OpenCall) -> None:
        """Take the frames before what the call does."""
        entry.has_begin_frames = True
        if self.frames.wants(entry.role) and self.threads.number == 0:
            with self.problems:
                self._frames += self.frames.take(
                    entry.role, "begin", entry.call, entry.context, entry.optimizer
                )

    def close(self, entry: OpenCall | None, exception: str, outputs: int = NONE) -> None:
        """End a call, and whatever began in it and is still open."""
        if entry is None:
            return
        end_ns = time.perf_counter_ns() - self.start_ns
        with self.problems:
            thread = self.threads
            stack = thread.stack
            if entry not in stack:
                return
            while stack[-1] is not entry:
                self._finish(thread, stack.pop(), exception or "BaseException", NONE)
            stack.pop()
            self._finish(thread, entry, exception, outputs, end_ns)

    def discard(self, entry: OpenCall | None) -> None:
        """Forget a call that turned out not to be one."""
        if entry is None or not self.is_active:
            return
        with self.problems:
            stack = self.threads.stack
            if entry in stack:
                stack.remove(entry)
                self._leave(self.threads, entry)
                self._frames = [frame for frame in self._frames if frame.call != entry.call]

    def _leave(self, thread: ThreadState, entry: OpenCall) -> None:
        if entry.role not in TRANSPARENT:
            thread.num_opaque -= 1
        if entry.is_muting:
            entry.is_muting = False
            self.silencer.unmute()
        if entry.role == "checkpoint" and thread.ident == self._training_thread:
            self.tracker.saving(-1)
        elif entry.role == "backward":
            self.num_backwards_open -= 1

    def _finish(
        self,
        thread: ThreadState,
        entry: OpenCall,
        exception: str,
        outputs: int,
        end_ns: int | None = None,
    ) -> None:
        if end_ns is None:
            end_ns = time.perf_counter_ns() - self.start_ns
        if not entry.is_muting and thread.ident == self._training_thread:
            self.silencer.mute()
            entry.is_muting = True
        is_recorded = entry.is_observed and self.is_observed
        if is_recorded and self.frames.wants(entry.role) and thread.number == 0:
            with self.problems:
                self._frames += self.frames.take(
                    entry.role, "end", entry.call, entry.context, entry.optimizer
                )
        self._leave(thread, entry)
        if is_recorded:
            row = (
                entry.call,
                entry.parent,
                entry.api,
                entry.subject_code,
                entry.begin,
                self.next_sequence(),
                entry.begin_ns,
                end_ns,
                entry.context,
                entry.source,
                entry.inputs,
                outputs,
                self.catalog.strings.code(exception) if exception else NONE,
                thread.number,
            )
            if thread.ident == self._training_thread:
                self.rows.append(row)
            else:
                self._foreign.append(row)
        if entry.counts and not exception:
            self._after(entry, thread)

    def _before(
        self, role: Role, thread: ThreadState, optimizer: Any | None, training: bool | None
    ) -> None:
        if thread.ident != self._training_thread:
            if role != "step" or self.segmenter.ever_stepped:
                return
            # The recording was started elsewhere, but this thread is the one that trains.
            self._training_thread = thread.ident
            thread.number = 0
        if not thread.num_opaque:
            self.segmenter.before(role, optimizer, training, len(self.rows))
        if role in ("step", "zero_grad", "backward") or (role == "forward" and training):
            self.tracker.enter_stage("training")
        elif role == "forward" and training is False:
            self.tracker.enter_stage("validation")
        elif role == "checkpoint":
            self.tracker.saving(1)

    def _after(self, entry: OpenCall, thread: ThreadState) -> None:
        role = entry.role
        if role == "step":
            self.tracker.completed_step(entry.optimizer)
            if thread.ident == self._training_thread:
                self.segmenter.stepped(entry.optimizer)
        elif role == "zero_grad":
            self.tracker.cleared(entry.optimizer)
        elif role == "backward" and thread.ident == self._training_thread:
            self.tracker.completed_backward()
            self.segmenter.went_backward()

    def _drop_stale(self, thread: ThreadState) -> None:
        """Close calls that ended without telling us: a hook does not run when its call raises."""
        for position, entry in enumerate(thread.stack):
            if entry.code is not None and not is_running(entry.frame_id, entry.code):
                for stale in reversed(thread.stack[position:]):
                    self._finish(thread, stale, "BaseException", NONE)
                del thread.stack[position:]
                if entry.role == "forward":
                    thread.root_id = thread.root_depth = 0
                return

    def is_training_thread(self) -> bool:
        """Return whether the calling thread is the one that trains."""
        return threading.get_ident() == self._training_thread

    def cut_if_too_long(self) -> None:
        """Cut a stretch outside training steps that became too long, between two functions."""
        with self.problems:
            thread = self.threads
            if not thread.num_opaque and self.segmenter.is_too_long(len(self.rows)):
                self.segmenter.cut_here()

    def mark(self) -> tuple[int, int]:
        """Return the present moment, for a later `cut`."""
        return len(self.rows), len(self._frames)

    def cut(self, mark: tuple[int, int] | None, *, completed: bool) -> None:
        """End the window at *mark*, or here."""
        rows, frames = self.rows, self._frames
        num_rows, num_frames = (len(rows), len(frames)) if mark is None else mark
        later_rows, later_frames = rows[num_rows:], frames[num_frames:]
        rows, frames = rows[:num_rows], frames[:num_frames]
        if self._foreign:
            rows += self._take_foreign()
            rows.sort(key=lambda row: row[5])
        was_observed = self.is_observed
        if completed:
            self.tracker.completed_window()
            later_rows = [self._moved(row) for row in later_rows]
            later_frames = [self._moved_frame(frame) for frame in later_frames]
        is_observed = self._sampling.observes(self.tracker.step)
        if mark is not None and not was_observed:
            # Its first calls were not recorded.
            is_observed = False
        self.rows = later_rows if is_observed else []
        self._frames = later_frames if is_observed else []
        if is_observed != was_observed:
            self.is_observed = is_observed
            (self.silencer.unmute if is_observed else self.silencer.mute)()
        if rows or frames or (not was_observed and self._num_unobserved):
            self._emit(rows, frames, was_observed)
        self._num_unobserved = 0

    def _emit(self, rows: list[Row], frames: list[Frame], is_observed: bool) -> None:
        window = Window(
            index=self._num_windows,
            rank=self._rank,
            calls=Calls.from_rows(rows if is_observed else []),
            frames=frames if is_observed else [],
            catalog=self.catalog,
            observed=is_observed,
        )
        self._num_windows += 1
        self.silencer.mute()
        with self.problems:
            self._sink(window)
        self.silencer.unmute()

    def _take_foreign(self) -> list[Row]:
        rows = []
        while self._foreign:
            rows.append(self._foreign.popleft())
        return rows

    def _moved(self, row: Row) -> Row:
        return (*row[:8], self.tracker.at_next_step(row[8]), *row[9:])

    def _moved_frame(self, frame: Frame) -> Frame:
        return Frame(
            call=frame.call,
            phase=frame.phase,
            sequence=frame.sequence,
            context=self.tracker.at_next_step(frame.context),
            variables=frame.variables,
            columns=frame.columns,
        )
