"""Watches one training run: what every adapter and `traincheck_plugin.watch` hand out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from traincheck_plugin.checker.check import conclude
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.config import Settings
from traincheck_plugin.errors import ConfigError, TrainingStopped, ViolationError
from traincheck_plugin.events import Window
from traincheck_plugin.recorder.variables import Selection
from traincheck_plugin.report.report import REPORTED, Report, message_of
from traincheck_plugin.report.summary import is_at_least
from traincheck_plugin.report.text import count_of, diagnosis_block
from traincheck_plugin.session.comparison import Comparison
from traincheck_plugin.session.console import say
from traincheck_plugin.session.live_check import LiveCheck
from traincheck_plugin.session.options import OnViolation, Paths, Task, WatchOptions
from traincheck_plugin.session.ranks import Ranks, place_of
from traincheck_plugin.session.session import Session, SessionOptions, outcome_of
from traincheck_plugin.trace.manifest import Outcome

PREFIX = "traincheck/"
"""Of the names under which metrics go to the loggers of a framework."""


class Monitor:
    """Watches training from `start` to `stop`, or as a context manager; may be started again.

    Adapters translate the events of their framework into calls of these methods. Nothing raises
    into the training but what the user asked for.

    Attributes:
        options: what the user asked for.
        should_stop: whether a violation was found and training is to end; for frameworks that end
            it themselves.
    """

    def __init__(
        self,
        options: WatchOptions | None = None,
        *,
        models: Sequence[torch.nn.Module] = (),
        optimizers: Sequence[torch.optim.Optimizer] = (),
        ends_block: bool = True,
    ) -> None:
        """Prepare to watch.

        Args:
            options: what the user asks for.
            models: to watch; none: every model that trains.
            optimizers: that exist already; others are found when they step.
            ends_block: on ``stop``, leave the block of the context manager by an exception.
        """
        self.options = options or WatchOptions()
        self.should_stop = False
        self._models = tuple(models)
        self._optimizers = tuple(optimizers)
        self._ends_block = ends_block
        self._listeners: list[Callable[[Diagnosis], None]] = []
        self._first_step = 0
        self._session: Session | None = None
        self._check: LiveCheck | None = None
        self._task: Task | None = None
        self._ranks: Ranks | None = None
        self._trace = ""
        self._is_watching = False
        self._num_told = 0
        self._rank = 0
        self._has_said = False

    @property
    def is_watching(self) -> bool:
        """Whether a run is being watched now."""
        return self._is_watching

    @property
    def report(self) -> Report:
        """What was found in the run that is watched, or was watched last."""
        session, task = self._session, self._task
        problems = list(task.remarks) if task is not None else []
        if session is not None:
            problems += session.problems
        invariants = task.invariants if task is not None else ()
        if self._check is None:
            result = conclude(self._trace, invariants, [], problems)
        else:
            result = self._check.result(self._trace, problems)
        return Report(
            result=result,
            invariants=invariants,
            num_steps=session.recorder.num_steps if session is not None else 0,
            overhead=session.overhead if session is not None else 0.0,
        )

    @property
    def metrics(self) -> dict[str, float]:
        """What goes to the loggers of a framework."""
        session = self._session
        return {
            f"{PREFIX}violations": float(self._num_told),
            f"{PREFIX}overhead": session.overhead if session is not None else 0.0,
        }

    def start(
        self,
        *,
        models: Sequence[torch.nn.Module] = (),
        optimizers: Sequence[torch.optim.Optimizer] = (),
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Begin to watch; does nothing where `TRAINCHECK_DISABLE` is set or already watching.

        Args:
            models: to watch, besides those of the constructor.
            optimizers: that exist already.
            rank: of this process; by default that in `torch.distributed`, or what the launcher set.
            world_size: likewise.

        Raises:
            TrainCheckError: what the user asked for cannot be done.
        """
        settings = Settings.from_environment()
        if settings.disabled or self._is_watching:
            return
        own_rank, own_size = place_of(settings)
        rank = self._rank = own_rank if rank is None else rank
        world_size = own_size if world_size is None else world_size
        task = self._task = self.options.resolve(settings, world_size)
        self.should_stop = False
        self._num_told = 0
        self._has_said = False
        self._ranks = Ranks()
        script = Path(sys.argv[0]).name if sys.argv else ""
        self._trace = _unused(task.trace, rank) if task.trace is not None else ""
        self._check = None
        sampling = task.sampling
        if task.invariants:
            comparison = None
            if world_size > 1 and task.compares_ranks:
                sampling = replace(sampling, compares_ranks=True)
                comparison = Comparison(self._ranks.prefix, sampling, self._first_step)
            self._check = LiveCheck(task.invariants, script, task.plan, self._tell, comparison)
        given = (*self._models, *models)
        self._session = Session(
            SessionOptions(
                plan=task.plan,
                trace=self._trace or None,
                rank=rank,
                world_size=world_size,
                # Several ranks compare steps that they agreed on, and look with every window
                # whether another one asked all to stop.
                may_pause=world_size == 1,
                sampling=sampling,
                selection=Selection(discovers_models=not given, variables=self.options.variables),
                first_step=self._first_step,
                script=script,
                notes={"invariants": task.sources},
            ),
            [*([self._check] if self._check is not None else ()), self],
        )
        self._is_watching = True
        self._session.start()
        for model in given:
            self._session.recorder.track(model)
        for optimizer in (*self._optimizers, *optimizers):
            self._session.recorder.track_optimizer(optimizer)

    def track_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Learn of optimizers that came to be after the start; others are found when they step."""
        if self._is_watching and self._session is not None:
            for optimizer in optimizers:
                self._session.recorder.track_optimizer(optimizer)

    def observe(self, owner: Any, method: str, name: str) -> None:
        """Record the calls of a framework's method too; see `Recorder.observe`."""
        if self._session is not None:
            self._session.recorder.observe(owner, method, name=name)

    def add_listener(self, listener: Callable[[Diagnosis], None]) -> None:
        """Have *listener*, which must not raise, called with each diagnosis when it is told."""
        self._listeners.append(listener)

    def end_batch(self) -> None:
        """Say that a batch is over, so that its step is judged at once.

        Raises:
            ViolationError: it broke an invariant, and the user asked for an exception.
        """
        if not self._is_watching or self._session is None:
            return
        self._session.recorder.end_batch()
        error = self._session.recorder.withdraw_interruption()
        if error is not None:
            raise error

    def stop(self, error: BaseException | None = None, *, outcome: Outcome | None = None) -> None:
        """Stop watching and say what was found; *error* is what ended the run, if anything did."""
        if not self._is_watching or self._session is None:
            return
        self._session.close(outcome or outcome_of(error))
        self._first_step = self._session.recorder.step
        self._is_watching = False
        if self.options.log:
            try:
                self._conclude()
            except Exception as failure:  # noqa: BLE001  # of ours: it must not end the training
                say(f"checker error: the run could not be summed up: {failure!r}")

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run should go on from: plain numbers."""
        step = self._first_step
        if self._is_watching and self._session is not None:
            step = self._session.recorder.next_step
        return {"step": step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; what makes no sense is ignored, since it must not stop a run.

        While watching, the first steps from now on are all observed.
        """
        step = state.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            return
        self._first_step = step
        if self._is_watching and self._session is not None:
            self._session.recorder.resume_at(step)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.stop(error)
        if error is None and self._session is not None:
            # Found in the last step: there was no later call to raise it from.
            late = self._session.recorder.withdraw_interruption()
            if late is not None and not isinstance(late, TrainingStopped):
                raise late
        return isinstance(error, TrainingStopped)

    def write(self, window: Window) -> None:
        """Take a window, as the last sink of the session: others may have asked to stop."""
        if self.options.on_violation == "stop" and self._ranks is not None:
            step = self._ranks.stop_step()
            if step is not None and self._step > step:
                self._end_training()

    def close(self, outcome: Outcome, *, problems: Sequence[str]) -> None:
        """End, as a sink of the session."""

    @property
    def _step(self) -> int:
        return self._session.recorder.step if self._session is not None else 0

    def _tell(self, diagnosis: Diagnosis) -> None:
        if not is_at_least(diagnosis.severity, REPORTED) or self._session is None:
            return
        self._num_told += 1
        self._session.recorder.attend()
        if self.options.log and (
            self._ranks is None
            or self._ranks.is_first_to_tell(f"{diagnosis.message}|{diagnosis.cause}")
        ):
            self._has_said = True
            lines = diagnosis_block(diagnosis, width=100, is_final=False)
            say("\n".join(label + text for label, text in lines))
        for listener in self._listeners:
            listener(diagnosis)
        answer = self.options.on_violation
        if answer == "raise":
            self._session.recorder.interrupt(ViolationError(message_of([diagnosis])))
        elif answer == "stop":
            self._ask_to_stop()
        elif callable(answer):
            try:
                answer(diagnosis)
            except Exception as error:  # noqa: BLE001  # the user's own, meant for the training
                self._session.recorder.interrupt(error)

    def _ask_to_stop(self) -> None:
        if self._ranks is not None and self._ranks.are_several():
            # The others cannot complete the step that has begun before this process takes part in
            # it: all of them will know when they have.
            self._ranks.stop_after(self._step)
        else:
            self._end_training()

    def _end_training(self) -> None:
        if self.should_stop:
            return
        self.should_stop = True
        if self._ends_block and self._session is not None:
            self._session.recorder.interrupt(
                TrainingStopped("a training invariant does not hold: see the log")
            )

    def _conclude(self) -> None:
        report, session = self.report, self._session
        if session is None or not self._has_something_to_say(report):
            return
        if report.invariants:
            is_quiet = not (report.diagnoses or report.problems)
            say(report.summary(), logging.INFO if is_quiet else logging.WARNING)
        if self._trace:
            tally = session.tally
            text = (
                f"{count_of(tally.num_windows, 'window')}, "
                f"{count_of(tally.num_calls, 'call')} in {self._trace}; "
                f"learn invariants with: traincheck-infer -f {self._trace}"
            )
            problems = () if report.invariants else report.problems
            level = logging.WARNING if problems else logging.INFO
            say("\n".join([text, *(f"  note: {problem}" for problem in problems)]), level)

    def _has_something_to_say(self, report: Report) -> bool:
        """Return whether this process sums up: the first does, others if only they know of it."""
        if self._rank == 0 or self._has_said:
            return True
        problems = "|".join(report.problems)
        return bool(problems) and self._ranks is not None and self._ranks.is_first_to_tell(problems)


def watch(
    *trained: torch.nn.Module | torch.optim.Optimizer,
    invariants: Paths | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    on_violation: OnViolation = "warn",
    max_overhead: float = 0.01,
    every_n_steps: int | None = None,
    warm_up_steps: int = WatchOptions.warm_up_steps,
    parameters: str | Sequence[str] | None = None,
    log: bool = True,
) -> Monitor:
    """Watch the training that goes on inside a ``with`` block.

    Example:
        >>> import torch
        >>> from traincheck_plugin import watch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model, optimizer, log=False) as monitor:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(4, 2)).mean().backward()
        ...         optimizer.step()
        >>> monitor.report.violations
        ()

    Args:
        *trained: models and optimizers; without a model every model that trains is watched.
        invariants: see `WatchOptions`, for all that follow.
        output_dir: where to write a trace to learn invariants from.
        on_violation: ``warn``, ``stop``, ``raise``, or a function of a diagnosis.
        max_overhead: the share of the training's time that watching may take.
        every_n_steps: watch one step in so many.
        warm_up_steps: how many first steps are all watched.
        parameters: patterns of the names of parameters and buffers to watch.
        log: whether to report in the log.

    Raises:
        ConfigError: an argument makes no sense.
    """
    models, optimizers = [], []
    for one in trained:
        if isinstance(one, torch.nn.Module):
            models.append(one)
        elif isinstance(one, torch.optim.Optimizer):
            optimizers.append(one)
        else:
            raise ConfigError(
                f"expected models and optimizers of torch, got a {type(one).__name__}; "
                "give the rest by keyword"
            )
    options = WatchOptions(
        invariants=invariants,
        output_dir=output_dir,
        on_violation=on_violation,
        max_overhead=max_overhead,
        every_n_steps=every_n_steps,
        warm_up_steps=warm_up_steps,
        parameters=parameters,
        log=log,
    )
    return Monitor(options, models=models, optimizers=optimizers)


def _unused(directory: str, rank: int) -> str:
    """Return *directory*, with a number where it holds the trace of an earlier run."""
    if "://" in directory:
        return directory
    place = os.path.abspath(directory)
    for number in count(2):
        own = Path(place, f"rank_{rank}")
        if not (own.is_dir() and any(own.iterdir())):
            return place
        place = f"{os.path.abspath(directory)}-{number}"
    raise AssertionError("count() does not end")
