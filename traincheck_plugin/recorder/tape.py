"""The tape: takes the begin and end of calls from the probes, with their frames."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.arguments import Arguments
from traincheck_plugin.recorder.calls import (
    LISTENING,
    TRANSPARENT,
    Doorbell,
    OpenCall,
    Silencer,
    ThreadState,
)
from traincheck_plugin.recorder.context import ContextTracker
from traincheck_plugin.recorder.cuts import Cuts
from traincheck_plugin.recorder.derivations import Derivations
from traincheck_plugin.recorder.draws import Draws
from traincheck_plugin.recorder.frames import FrameTaker
from traincheck_plugin.recorder.naming import Apis, Labels
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings, is_capturing
from traincheck_plugin.recorder.reel import Reel
from traincheck_plugin.recorder.runs import ModuleRuns
from traincheck_plugin.recorder.sampling import Sampler, Sampling
from traincheck_plugin.recorder.signatures import Signatures
from traincheck_plugin.recorder.sources import Sources
from traincheck_plugin.recorder.variables import Selection, Variables
from traincheck_plugin.recorder.windows import Segmenter
from traincheck_plugin.vocabulary import NONE, Role

MAX_BATCHES = 8
"""Batches that are observed where it is for the start of their loader."""

Outcome = Callable[[tuple[Any, ...], Mapping[str, Any], Any], int]
"""Gives the code of the signature that says what a call came to, from arguments and result."""


class Tape:
    """Keeps the open calls of every thread and puts the finished ones on the reel.

    Attributes:
        is_active: whether there is a recording.
        has_passed_batch: whether a batch was delivered since the last step, while nobody listens.
        is_listening: whether anything is to be told now; probes pass everything through when not,
            but for the ends of optimizer steps, which go to `passed_step`.
        num_backwards_open: backward calls under way on any thread.
        spent_ns: time that recording took from the training thread, sinks included.
        interruption: raised into the training at the next recorded call, once.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Callable[[Window], None],
        *,
        rank: int,
        world_size: int,
        sampling: Sampling,
        selection: Selection,
        problems: Problems,
        first_step: int = 0,
        may_pause: bool = True,
    ) -> None:
        self.catalog = Catalog()
        self.problems = problems
        self.apis = Apis(self.catalog.apis)
        self.labels = Labels(self.catalog)
        self.sources = Sources(self.catalog.sources)
        self.signatures = Signatures(self.catalog.signatures)
        self.draws = Draws()
        self.cuts = Cuts()
        self.derivations = Derivations(self.sources)
        self.tracker = ContextTracker(self.catalog, rank, world_size, first_step)
        self.variables = Variables(
            self.catalog,
            self.labels,
            selection,
            problems,
            observes_copies="copy" in plan.wants("step", "parameter"),
        )
        self.next_sequence: Callable[[], int] = itertools.count().__next__
        self.next_call: Callable[[], int] = itertools.count().__next__
        self.spent_ns = 0
        self.start_ns = 0
        self.sampler = Sampler(sampling, first_step)
        self.interruption: BaseException | None = None
        self.runs = ModuleRuns()
        readings = DeviceReadings()
        self.frames = FrameTaker(
            plan, self.catalog, self.variables, readings, problems, self.runs, self.next_sequence
        )
        self.arguments = Arguments(
            plan, self.catalog, self.labels, readings, problems, self.next_sequence
        )
        self.reel = Reel(
            self.catalog,
            sink,
            rank=rank,
            sampler=self.sampler,
            clock=lambda: (self.spent_ns, time.perf_counter_ns() - self.start_ns),
            tracker=self.tracker,
            readings=readings,
            problems=problems,
            on_observed=lambda is_observed: (
                self.silencer.unmute() if is_observed else self.silencer.mute()
            ),
        )
        self.segmenter = Segmenter(self.reel, self.variables.optimizers)
        self.threads = ThreadState()
        self.silencer = Silencer()
        self.doorbell = Doorbell()
        self.is_active = self.is_listening = self.has_passed_batch = False
        self._may_pause = may_pause
        self._num_attended = 0
        self.num_backwards_open = 0
        self._passed_forward: bool | None = None
        self._training_thread = 0
        self._thread_numbers = itertools.count(1)

    def start(self) -> None:
        """Begin to record; the calling thread is the training thread."""
        self._training_thread = threading.get_ident()
        self.threads.number = 0
        self.start_ns = time.perf_counter_ns()
        self.is_active = self.is_listening = True
        if not self.reel.is_observed:
            self.silencer.mute()

    def stop(self) -> None:
        """Close what is open, emit the last window and record nothing more."""
        if not self.is_active:
            return
        self.resume()
        self.silencer.mute()
        with self.problems:
            while self.threads.stack:
                self._finish(self.threads, self.threads.stack.pop(), "", NONE, 0)
        self.deactivate()
        with self.problems:
            self.segmenter.cut_here()
        with self.problems:
            self.reel.finish()
            if self.reel.has_waiting:
                self.problems.note(
                    "the last step was not looked at: a CUDA graph is captured where the recording "
                    "ends"
                )

    def deactivate(self) -> None:
        """Record nothing more."""
        self.is_active = self.is_listening = False

    def passed_step(self, optimizer: Any) -> None:
        """Count a step that ends while nobody listens, and listen again if the next one counts."""
        if self.is_listening or not self.is_active or not self.is_training_thread():
            return
        start_ns = time.perf_counter_ns()
        self.has_passed_batch = False
        with self.problems:
            if self.segmenter.passed(optimizer):
                self.tracker.completed_window()
            # Whether gradients were cleared meanwhile is not known: taken for what it was before.
            self.tracker.attempted_step()
            if self.reel.has_waiting:
                self.reel.finish()
            if self._expects_next_step():
                self.resume()
        self.spent_ns += time.perf_counter_ns() - start_ns

    def resume(self) -> None:
        """Listen again, if nobody did."""
        if self.is_active and not self.is_listening:
            self.is_listening = True
            self.doorbell.resume()
            self.tracker.enter_stage("training")

    def starts_loader(self) -> None:
        """Listen to what comes when a loader is started, a few times, if nobody would."""
        is_heard = self.is_listening and self.reel.is_observed
        if is_heard and self.segmenter.is_complete:
            # Here the next window begins.
            is_heard = self._expects_next_step()
        if not self.is_listening and self.has_passed_batch:
            # A step may be under way.
            return
        if not is_heard and not self.threads.num_opaque and self.sampler.attend_start():
            self._num_attended = MAX_BATCHES
            self.resume()
            self.silencer.mute()
            self.segmenter.cut_between()
            self.silencer.unmute()

    def delivers(self) -> None:
        """Listen no more to what began with a start of a loader after so many of its batches."""
        if self._num_attended:
            self._num_attended -= 1
            if not self._num_attended and not self.threads.num_opaque:
                self.silencer.mute()
                self.segmenter.cut_between()
                self.silencer.unmute()

    def _pause(self) -> None:
        """Listen to nothing but the ends of steps, until one is to be observed again."""
        self.is_listening = self.has_passed_batch = False
        self.doorbell.pause()

    def _expects_next_step(self) -> bool:
        now_ns = time.perf_counter_ns() - self.start_ns
        return self.sampler.expects(self.tracker.next_step, self.spent_ns, now_ns)

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
        note: Callable[[int], int] | None = None,
        outcome: Outcome | None = None,
        frames: Callable[[OpenCall], list[Frame]] | None = None,
    ) -> Any:
        """Call *function* and record the call; see `open` for the arguments.

        With *is_summarised* the signatures of arguments and result are recorded too; *note* may
        add to that of the arguments. *outcome* gives what to note of the result instead. *frames*
        makes frames of what the call is given.
        """
        inputs = outputs = NONE
        if is_summarised and self.reel.is_observed:
            # Our own reading of tensors must not be recorded either.
            self.silencer.mute()
            with self.problems:
                inputs = self.signatures.arguments(args, kwargs)
                inputs = inputs if note is None else note(inputs)
            self.silencer.unmute()
        entry = self.open(
            role, api, subject=subject, optimizer=optimizer, inputs=inputs, counts=counts
        )
        if self.interruption is not None and self.is_training_thread():
            self.discard(entry)
            error, self.interruption = self.interruption, None
            raise error
        if frames is not None:
            self.note(entry, frames)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self.close(entry, type(error).__name__)
            raise
        if is_summarised and entry is not None and entry.is_observed and result is not None:
            with self.problems:
                outputs = self.signatures.result(result)
        elif outcome is not None and entry is not None and entry.is_observed:
            with self.problems:
                outputs = outcome(args, kwargs, result)
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
        ends_with: FrameType | None = None,
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
            ends_with: the frame that ends with the call, where no ``finally`` of ours closes it.
            is_deferring_frames: whether the caller takes the begin frames later.
        """
        if not self.is_active:
            return None
        start_ns = time.perf_counter_ns()
        with self.problems:
            thread = self.threads
            if thread.stack:
                self._drop_stale(thread)
            if optimizer is not None:
                self.variables.add_optimizer(optimizer)
            if counts:
                self._before(role, thread, optimizer, training)
            entry = OpenCall(role, api, subject, optimizer)
            entry.counts = counts
            entry.is_observed = self.reel.is_observed
            if ends_with is not None:
                entry.ends_with(ends_with)
            self._enter(thread, entry)
            if entry.is_observed:
                entry.inputs = inputs
                if optimizer is not None:
                    self.is_about(entry, optimizer)
                self._describe(thread, entry)
                if not is_deferring_frames:
                    self.take_begin_frames(entry)
            else:
                self.reel.num_left_out += 1
            if entry.is_muting and role in LISTENING:
                entry.is_muting = False
                self.silencer.unmute()
            now_ns = time.perf_counter_ns()
            entry.begin_ns = now_ns - self.start_ns
            if thread.ident == self._training_thread:
                self.spent_ns += now_ns - start_ns
            return entry
        return None

    def refresh(self, entry: OpenCall) -> None:
        """Note the present context as that of *entry*."""
        since = NONE
        if entry.optimizer is not None and entry.role in ("construct", "step", "zero_grad"):
            since = self.tracker.steps_since_clear(entry.optimizer)
        entry.context = self.tracker.code(since)

    def is_about(self, entry: OpenCall, optimizer: Any) -> None:
        """Name *optimizer* among the arguments of a call on something else, such as a scheduler."""
        if entry.is_observed and entry.subject is not optimizer:
            label = self.labels.text(optimizer)
            entry.inputs = self.signatures.extended(entry.inputs, "optimizer", label)

    def take_begin_frames(self, entry: OpenCall) -> None:
        """Take the frames before what the call does."""
        entry.has_begin_frames = True
        if self.frames.wants(entry.role) and self.is_training_thread() and self._may_read():
            with self.problems:
                self.reel.frames += self.frames.take(
                    entry.role, "begin", entry.call, entry.context, entry.optimizer
                )

    def note(self, entry: OpenCall | None, take: Callable[[OpenCall], list[Frame]]) -> None:
        """Add the frames that *take* makes of what an open call was given or gives."""
        if entry is None or not entry.is_observed or not self.is_training_thread():
            return
        if not self._may_read():
            return
        start_ns = time.perf_counter_ns()
        self.silencer.mute()
        with self.problems, torch.no_grad():
            self.reel.frames += take(entry)
        self.silencer.unmute()
        self.spent_ns += time.perf_counter_ns() - start_ns

    def close(self, entry: OpenCall | None, exception: str, outputs: int = NONE) -> None:
        """End a call, and whatever began in it and is still open."""
        if entry is None:
            return
        now_ns = time.perf_counter_ns()
        end_ns = now_ns - self.start_ns
        with self.problems:
            thread = self.threads
            stack = thread.stack
            if entry not in stack:
                return
            while stack[-1] is not entry:
                self._finish(thread, stack.pop(), exception or "BaseException", NONE, end_ns)
            self._finish(thread, stack.pop(), exception, outputs, end_ns)
            if thread.ident == self._training_thread:
                self.spent_ns += time.perf_counter_ns() - now_ns

    def discard(self, entry: OpenCall | None) -> None:
        """Forget a call that turned out not to be one."""
        if entry is None:
            return
        with self.problems:
            stack = self.threads.stack
            if entry in stack:
                stack.remove(entry)
                self._leave(self.threads, entry)
                if entry.is_observed:
                    self.reel.drop_frames(entry.call)
                else:
                    self.reel.num_left_out -= 1

    def end_batch(self) -> None:
        """End the window if an optimizer stepped in it: a framework says that the batch is over."""
        if not self.is_listening or not self.is_training_thread() or self.threads.num_opaque:
            return
        start_ns = time.perf_counter_ns()
        with self.problems:
            self.silencer.mute()
            self.segmenter.end_batch()
            self.silencer.unmute()
        self.spent_ns += time.perf_counter_ns() - start_ns

    def passed_forward(self, training: bool) -> None:
        """Note a forward that is not recorded, since it runs in a transform of `torch.func`.

        A batch may begin with it, and nothing can be read before the transform is over: the window
        ends when the next call begins.
        """
        thread = self.threads
        if self.is_training_thread() and not thread.num_opaque:
            if self._passed_forward is None:
                self._passed_forward = training
            self.tracker.enter_stage("training" if training else "validation")

    def is_training_thread(self) -> bool:
        """Return whether the calling thread is the one that trains."""
        return threading.get_ident() == self._training_thread

    def cut_if_too_long(self) -> None:
        """Cut a stretch outside training steps that became too long, between two functions."""
        with self.problems:
            is_outermost = not self.threads.num_opaque
            if is_outermost and self.segmenter.is_too_long(len(self.reel.rows)):
                self.silencer.mute()
                self.segmenter.cut_here()
                self.silencer.unmute()

    def _before(
        self, role: Role, thread: ThreadState, optimizer: Any | None, training: bool | None
    ) -> None:
        if thread.ident != self._training_thread:
            if role != "step" or self.segmenter.has_stepped:
                return
            self._adopt(thread)
        if role == "backward":
            self.variables.drop_replaced()
        elif role == "step":
            self.variables.find_copies()
        if not thread.num_opaque:
            self.silencer.mute()
            passed, self._passed_forward = self._passed_forward, None
            if passed is not None:
                self.segmenter.before("forward", None, passed, len(self.reel.rows))
            self.segmenter.before(role, optimizer, training, len(self.reel.rows))
            self.silencer.unmute()
        if role in ("step", "zero_grad", "backward") or (role == "forward" and training):
            self.tracker.enter_stage("training")
        elif role == "forward" and training is False:
            self.tracker.enter_stage("validation")

    def _adopt(self, thread: ThreadState) -> None:
        """Take a thread that steps for the training thread, if no other ever stepped."""
        self._training_thread = thread.ident
        thread.number = 0
        self.problems.note(
            "training runs in another thread than the one that started the recording: "
            "no functions are recorded there"
        )

    def _enter(self, thread: ThreadState, entry: OpenCall) -> None:
        thread.stack.append(entry)
        if entry.role not in TRANSPARENT:
            thread.num_opaque += 1
        if entry.role == "backward":
            self.num_backwards_open += 1
        if thread.ident == self._training_thread:
            if entry.role == "checkpoint":
                self.tracker.saving(1)
            # Our own reading of tensors must not be recorded either.
            self.silencer.mute()
            entry.is_muting = True

    def _describe(self, thread: ThreadState, entry: OpenCall) -> None:
        if thread.number == NONE:
            thread.number = next(self._thread_numbers)
        entry.call = self.next_call()
        if len(thread.stack) > 1:
            entry.parent = thread.stack[-2].call
        entry.source = self.sources.here(sys._getframe(2))
        if entry.subject is not None:
            entry.subject_code = self.labels.code(entry.subject)
        entry.begin = self.next_sequence()
        self.refresh(entry)

    def _finish(
        self, thread: ThreadState, entry: OpenCall, exception: str, outputs: int, end_ns: int
    ) -> None:
        """Record a call that was just taken off the stack."""
        is_training_thread = thread.ident == self._training_thread
        if not entry.is_muting and is_training_thread:
            self.silencer.mute()
            entry.is_muting = True
        is_recorded = entry.is_observed and self.reel.is_observed
        if is_recorded and entry.has_begin_frames and is_training_thread:
            self._take_end_frames(entry)
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
            (self.reel.rows.append if is_training_thread else self.reel.add_foreign)(row)
        if entry.counts and not exception and is_training_thread:
            self._count(entry)

    def _take_end_frames(self, entry: OpenCall) -> None:
        if self.frames.wants(entry.role) and self._may_read():
            with self.problems:
                self.reel.frames += self.frames.take(
                    entry.role, "end", entry.call, entry.context, entry.optimizer
                )

    def _may_read(self) -> bool:
        """Return whether tensors can be read now; what cannot be read in whole is not observed."""
        if not is_capturing():
            return True
        self.problems.note("nothing is read while a CUDA graph is captured")
        self.reel.leave_out()
        return False

    def _leave(self, thread: ThreadState, entry: OpenCall) -> None:
        if entry.role not in TRANSPARENT:
            thread.num_opaque -= 1
        if entry.role == "backward":
            self.num_backwards_open -= 1
        elif entry.role == "forward":
            thread.root_id = thread.root_depth = 0
        elif entry.role == "checkpoint" and thread.ident == self._training_thread:
            self.tracker.saving(-1)
        if entry.is_muting:
            entry.is_muting = False
            self.silencer.unmute()

    def _count(self, entry: OpenCall) -> None:
        if entry.role == "step":
            self.tracker.completed_step(entry.optimizer)
            self.runs.stepped(entry.optimizer)
            self.arguments.stepped()
            self.segmenter.stepped(entry.optimizer)
            self.variables.settle()
            if (
                self._may_pause
                and not self.reel.is_observed
                and not self.threads.num_opaque
                and not self._expects_next_step()
            ):
                self._pause()
        elif entry.role == "zero_grad":
            self.tracker.cleared(entry.optimizer)
        elif entry.role == "backward":
            self.tracker.completed_backward()
            self.segmenter.went_backward()

    def _drop_stale(self, thread: ThreadState) -> None:
        """Close calls that ended without telling us: a hook does not run when its call raises."""
        for position, entry in enumerate(thread.stack):
            if entry.is_stale():
                while len(thread.stack) > position:
                    end_ns = time.perf_counter_ns() - self.start_ns
                    self._finish(thread, thread.stack.pop(), "BaseException", NONE, end_ns)
                return
