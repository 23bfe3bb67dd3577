"""What a user asks for when watching a run, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal

from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.config import Settings
from traincheck_plugin.errors import ConfigError
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.invariants.sources import DEFAULT
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.sampling import Sampling
from traincheck_plugin.relations.loading import load_checkable
from traincheck_plugin.relations.needs import plan_for
from traincheck_plugin.relations.registry import relations
from traincheck_plugin.report.report import REPORTED
from traincheck_plugin.report.summary import is_at_least

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]
OnViolation = Literal["warn", "stop", "raise"] | Callable[[Diagnosis], None]

WARM_UP_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How to watch a run.

    Attributes:
        invariants: files of invariants to check, or ``default`` for the bundled ones. None: those
            of `TRAINCHECK_INVARIANTS`; without it the bundled ones, unless a trace is written.
        output_dir: where to write the trace of the run, from which invariants can be learned. None:
            `TRAINCHECK_OUTPUT_DIR`; without it no trace is written.
        on_violation: ``warn`` says so in the log; ``stop`` also ends the training, ``raise`` by a
            `ViolationError`; a function is called with the diagnosis, and what it raises goes
            into the training.
        max_overhead: the share of the training's time that watching may take.
        every_n_steps: watch one step in so many, instead of as many as *max_overhead* allows.
            None: every step where a trace is written.
        warm_up_steps: how many steps are all watched at the start, after a resumption and after a
            violation.
        parameters: patterns of names of parameters and buffers to watch, as in a shell; None: all.
        log: whether to report in the log, and to the loggers of the framework.
    """

    invariants: Paths | None = None
    output_dir: str | PathLike[str] | None = None
    on_violation: OnViolation = "warn"
    max_overhead: float = 0.01
    every_n_steps: int | None = None
    warm_up_steps: int = WARM_UP_STEPS
    parameters: str | Sequence[str] | None = None
    log: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one of them makes no sense.
        """
        if self.on_violation not in ("warn", "stop", "raise") and not callable(self.on_violation):
            raise ConfigError(
                "expected on_violation to be 'warn', 'stop', 'raise' or a function, "
                f"got {self.on_violation!r}"
            )
        if not 0 < self.max_overhead <= 1:
            raise ConfigError(
                f"expected max_overhead to be a share above 0 and up to 1, such as 0.01 for 1 %, "
                f"got {self.max_overhead!r}"
            )
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ConfigError(f"expected every_n_steps to be at least 1, got {self.every_n_steps}")
        if self.warm_up_steps < 0:
            raise ConfigError(f"expected warm_up_steps to be 0 or more, got {self.warm_up_steps}")

    def resolve(self, settings: Settings, world_size: int = 1) -> Task:
        """Return what is to be done by one of *world_size* processes, the environment considered.

        Raises:
            InvariantError: a file of invariants cannot be read.
        """
        trace = settings.output_dir if self.output_dir is None else str(self.output_dir)
        sources: Sequence[str] = settings.invariants
        if self.invariants is not None:
            sources = _listed(self.invariants)
        if not sources and trace is None:
            sources = (DEFAULT,)
        invariants, remarks = load_checkable(sources) if sources else ((), ())
        if world_size == 1:
            # They say nothing of a process alone, and would cost it time.
            invariants = tuple(i for i in invariants if not is_across_ranks(i))
        if trace is None:
            # Nobody will see the rest, and observing what it needs takes time.
            invariants = tuple(i for i in invariants if is_at_least(i.severity, REPORTED))
        every_step = 1 if trace is not None else None
        return Task(
            invariants=invariants,
            sources=tuple(sources),
            trace=trace,
            plan=plan_for(invariants, relations()) if trace is None else Plan.full(),
            sampling=Sampling(
                interval=every_step if self.every_n_steps is None else self.every_n_steps,
                warm_up_steps=self.warm_up_steps,
                max_overhead=self.max_overhead,
            ),
            remarks=remarks,
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """The patterns of *parameters*, as a tuple."""
        if self.parameters is None:
            return ()
        return (self.parameters,) if isinstance(self.parameters, str) else tuple(self.parameters)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be done in one run.

    Attributes:
        invariants: what to check; none when only a trace is written.
        sources: where they came from.
        trace: where to write the trace; None to write none.
        plan: what to observe.
        sampling: which steps.
        remarks: what has to be said about the invariants.
    """

    invariants: tuple[Invariant, ...]
    sources: tuple[str, ...]
    trace: str | None
    plan: Plan
    sampling: Sampling
    remarks: tuple[str, ...]

    @property
    def compares_ranks(self) -> bool:
        """Whether an invariant is about all ranks together."""
        return any(map(is_across_ranks, self.invariants))


def is_across_ranks(invariant: Invariant) -> bool:
    """Return whether *invariant* is about all ranks together."""
    return relations()[invariant.relation].is_across_ranks


def _listed(paths: Paths) -> tuple[str, ...]:
    if isinstance(paths, str | PathLike):
        return (str(paths),)
    return tuple(map(str, paths))
