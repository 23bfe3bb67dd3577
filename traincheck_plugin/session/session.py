"""Wires one live run: what the recorder sees goes to every sink, such as a trace writer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from traincheck_plugin.errors import TrainCheckError
from traincheck_plugin.events import Window
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.recorder import Recorder
from traincheck_plugin.recorder.sampling import Sampling
from traincheck_plugin.recorder.variables import Selection
from traincheck_plugin.trace.manifest import Manifest, Outcome
from traincheck_plugin.trace.writer import TraceWriter
from traincheck_plugin.vocabulary import Role

_NO_STEP = (
    "gradients were computed and no optimizer step was seen: steps inside compiled code, and "
    "parameters that a script updates by itself, cannot be observed"
)


class Sink(Protocol):
    """Takes the windows of a live run as they complete, in the thread that trains.

    A sink that raises gets no further windows; the training goes on.
    """

    def write(self, window: Window) -> None:
        """Take the next window."""

    def close(self, outcome: Outcome, *, problems: Sequence[str]) -> None:
        """Finish: the run is over; *problems* tells what could not be observed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What to observe in one process, and where to write it.

    Attributes:
        plan: what to observe.
        trace: directory or URI of the trace; None to write none.
        rank, world_size: of this process.
        sampling: which steps to observe.
        selection: which models and variables to track.
        first_step: index of the first step: that of a run that was resumed.
        may_pause: whether a stretch of steps that sampling leaves out may be one window.
        modules_to_instrument: packages whose functions are observed besides those of torch.
        command, script: for the manifest: as typed, and the entry script.
        notes: what else the manifest should tell; anything that JSON can hold.
    """

    plan: Plan
    trace: str | None = None
    rank: int = 0
    world_size: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    selection: Selection = field(default_factory=Selection)
    first_step: int = 0
    may_pause: bool = True
    modules_to_instrument: tuple[str, ...] = ()
    command: tuple[str, ...] | None = None
    script: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Tally:
    """Counts what was recorded.

    Attributes:
        num_windows, num_calls: so far.
        roles: of the calls.
    """

    def __init__(self) -> None:
        self.num_windows = 0
        self.num_calls = 0
        self.roles: set[Role] = set()
        self._apis: set[int] = set()

    def count(self, window: Window) -> None:
        """Add *window*."""
        self.num_windows += 1
        self.num_calls += len(window.calls)
        new = set(window.api_codes) - self._apis
        self._apis |= new
        self.roles.update(window.catalog.apis[code].role for code in new)


class Session:
    """One live run in this process, from `start` to `close`; also a context manager.

    From `start` on nothing raises into the training. In forked children all methods do nothing.

    Attributes:
        tally: what was recorded so far.
    """

    def __init__(self, options: SessionOptions, sinks: Sequence[Sink] = ()) -> None:
        """Prepare a run; *sinks* get its windows besides the trace.

        Raises:
            TraceError: the trace cannot be written where *options* say.
        """
        self.tally = Tally()
        self._process = os.getpid()
        self._problems: list[str] = []
        self._is_over = False
        self._start_ns = self._end_ns = 0
        self._recorder = Recorder(
            options.plan,
            self._deliver,
            rank=options.rank,
            world_size=options.world_size,
            sampling=options.sampling,
            selection=options.selection,
            first_step=options.first_step,
            may_pause=options.may_pause,
            modules_to_instrument=options.modules_to_instrument,
        )
        self._sinks: tuple[Sink, ...] = tuple(sinks)
        if options.trace is not None:
            self._sinks = (_trace_writer(options, options.trace), *self._sinks)
        self._accepting = list(self._sinks)

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be observed or written, a sentence each."""
        roles = self.tally.roles
        is_without_steps = "backward" in roles and "step" not in roles
        return (
            *self._recorder.problems,
            *self._problems,
            *([_NO_STEP] if is_without_steps else []),
        )

    @property
    def recorder(self) -> Recorder:
        """What observes."""
        return self._recorder

    @property
    def overhead(self) -> float:
        """What observing and checking took, as a share of what the training itself did.

        From start to end, or to now, by the wall clock: 0.01 is training that takes 1 % longer.
        """
        elapsed = (self._end_ns or time.perf_counter_ns()) - self._start_ns
        spent = self._recorder.spent_ns
        return spent / (elapsed - spent) if self._start_ns and elapsed > spent else 0.0

    def start(self) -> None:
        """Begin to observe."""
        self._start_ns = time.perf_counter_ns()
        self._guarded("the recorder could not start", self._recorder.start)

    def close(self, outcome: Outcome) -> None:
        """Stop observing and finish every sink. Again: does nothing."""
        if os.getpid() == self._process:
            self._end_ns = self._end_ns or time.perf_counter_ns()
            self._guarded("the recorder could not be stopped", self._recorder.stop)
            self.abandon(outcome)

    def abandon(self, outcome: Outcome) -> None:
        """Finish every sink while the recorder still runs: for a process about to be killed.

        May be called from any thread. Again: does nothing.
        """
        if not self._takes_windows():
            return
        self._is_over = True
        problems = self.problems
        for sink in self._sinks:
            try:
                sink.close(outcome, problems=problems)
            except Exception as error:  # noqa: BLE001 one sink must not keep the others open
                self._note(f"{type(sink).__name__} could not finish", error)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(outcome_of(error))

    def _takes_windows(self) -> bool:
        return not self._is_over and os.getpid() == self._process

    def _deliver(self, window: Window) -> None:
        if not self._takes_windows():
            return
        self.tally.count(window)
        for sink in tuple(self._accepting):
            try:
                sink.write(window)
            except Exception as error:  # noqa: BLE001 the training must go on, whatever it is
                self._accepting.remove(sink)
                self._note(f"{type(sink).__name__} failed and gets no further windows", error)

    def _guarded(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 the training must go on, whatever it is
            self._note(what, error)

    def _note(self, what: str, error: Exception) -> None:
        if isinstance(error, TrainCheckError):
            self._problems.append(str(error))
        else:
            self._problems.append(f"{what}: {type(error).__name__}: {error}")


def outcome_of(error: BaseException | None) -> Outcome:
    """Return how a run ended that *error* left, or that none left."""
    if error is None:
        return Outcome(how="finished", exit_code=0)
    detail = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    if isinstance(error, KeyboardInterrupt):
        return Outcome(how="interrupted", detail=detail)
    if isinstance(error, SystemExit):
        return Outcome(how="exit", detail=detail)
    return Outcome(how="exception", detail=detail)


def _trace_writer(options: SessionOptions, directory: str) -> TraceWriter:
    manifest = Manifest.here(
        torch=str(torch.__version__),
        script=options.script,
        world_size=options.world_size,
        command=options.command,
        plan=options.plan.to_json(),
        options={
            **options.notes,
            "models_to_track": options.selection.model_names,
            "modules_to_instrument": options.modules_to_instrument,
            "sampling_interval": options.sampling.interval,
            "warm_up_steps": options.sampling.warm_up_steps,
        },
    )
    return TraceWriter(directory, manifest, rank=options.rank)
