"""Records a training run: attaches the probes, hands windows to a sink, removes everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import ConfigError
from traincheck_plugin.events import Window
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.compiler import hide_from_compiler
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.backward import BackwardProbe
from traincheck_plugin.recorder.probes.base import Probe, recorded
from traincheck_plugin.recorder.probes.checkpoints import CheckpointsProbe
from traincheck_plugin.recorder.probes.clipping import ClippingProbe
from traincheck_plugin.recorder.probes.data import DataProbe
from traincheck_plugin.recorder.probes.functions import FunctionsProbe
from traincheck_plugin.recorder.probes.modules import ModulesProbe
from traincheck_plugin.recorder.probes.optimizers import OptimizersProbe
from traincheck_plugin.recorder.probes.packages import PackagesProbe
from traincheck_plugin.recorder.probes.scaling import ScalingProbe
from traincheck_plugin.recorder.probes.schedulers import SchedulersProbe
from traincheck_plugin.recorder.probes.seeds import SeedsProbe
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.sampling import Sampling
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.variables import Selection
from traincheck_plugin.vocabulary import Role

_active: set[Recorder] = set()


class Recorder:
    """Records what a training run does, as windows.

    The thread that calls `start` is taken for the one that trains. At most one recorder of a
    process runs at a time; it is inactive in forked children.

    Args:
        plan: what to observe.
        sink: gets each window, in order, on the training thread.
        rank: global rank of this process.
        world_size: number of processes of the run.
        sampling: which steps are observed.
        selection: which models and variables are tracked.
        modules_to_instrument: packages whose public functions and methods are recorded too.
        first_step: index of the first step: that of a run that was resumed.
        may_pause: whether a stretch of steps that sampling leaves out may be one window, of which
            nothing is seen but that optimizers step. Otherwise each step has its own.

    Attributes:
        catalog: what the codes of the windows point into.
        problems: what could not be observed, and own failures, each said once.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Callable[[Window], None],
        *,
        rank: int = 0,
        world_size: int = 1,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        selection: Selection = Selection(),  # noqa: B008  # frozen
        modules_to_instrument: tuple[str, ...] = (),
        first_step: int = 0,
        may_pause: bool = True,
    ) -> None:
        self._problems = Problems()
        self._tape = Tape(
            plan,
            sink,
            rank=rank,
            world_size=world_size,
            sampling=sampling,
            selection=selection,
            problems=self._problems,
            first_step=first_step,
            may_pause=may_pause,
        )
        self._patches = Patches(self._problems)
        self._probes: list[Probe] = [
            OptimizersProbe(),
            BackwardProbe(),
            ModulesProbe(),
            DataProbe(),
            ClippingProbe(),
            ScalingProbe(),
            SchedulersProbe(),
            CheckpointsProbe(),
            SeedsProbe(),
        ]
        if modules_to_instrument:
            self._probes.append(PackagesProbe(modules_to_instrument, self._problems))
        if plan.functions is None or plan.functions:
            # First, so that torch lists its own functions before they are patched.
            self._probes.insert(0, FunctionsProbe(plan.functions))

    @property
    def catalog(self) -> Catalog:
        """What the codes of the windows point into."""
        return self._tape.catalog

    @property
    def problems(self) -> list[str]:
        """What could not be observed, and own failures, each said once."""
        return self._problems.texts

    def start(self) -> None:
        """Attach the probes.

        Raises:
            ConfigError: another recorder is running in this process.
        """
        if _active:
            raise ConfigError(
                "expected no recording under way in this process, but one is running; stop it first"
            )
        _active.add(self)
        with self._problems:
            hide_from_compiler()
        for probe in self._probes:
            with self._problems:
                probe.attach(self._tape, self._patches)
        self._tape.start()

    def stop(self) -> None:
        """Emit the last window and remove everything that was attached; idempotent."""
        if self not in _active:
            return
        _active.discard(self)
        self._tape.stop()
        for probe in reversed(self._probes):
            with self._problems:
                probe.detach()
        self._patches.undo()

    def track(self, model: torch.nn.Module) -> None:
        """Track the variables of *model*, which need not be found then."""
        with self._problems:
            self._tape.variables.add_root(model)

    def track_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Learn of an optimizer that exists already; others are found when they step."""
        with self._problems:
            self._tape.variables.add_optimizer(optimizer)

    @property
    def step(self) -> int:
        """Index of the present training step."""
        return self._tape.tracker.step

    @property
    def next_step(self) -> int:
        """Index of the step that a run which goes on from the present state begins with."""
        tracker = self._tape.tracker
        return tracker.next_step if self._tape.segmenter.is_complete else tracker.step

    @property
    def num_steps(self) -> int:
        """How many training steps were completed since the start."""
        return self._tape.tracker.num_steps

    @property
    def spent_ns(self) -> int:
        """Time that recording took from the training thread, sinks included."""
        return self._tape.spent_ns

    def end_batch(self) -> None:
        """Say that a batch is over: if an optimizer stepped in it, its window is complete."""
        self._tape.end_batch()

    def attend(self) -> None:
        """Observe every step for a while, whatever it costs, the next one first."""
        self._tape.sampler.attend(self.next_step)
        self._tape.resume()

    def resume_at(self, step: int) -> None:
        """Count on from *step*: a checkpoint was loaded."""
        self._tape.tracker.resume_at(step, is_complete=self._tape.segmenter.is_complete)
        self.attend()

    def withdraw_interruption(self) -> BaseException | None:
        """Return what `interrupt` would have raised, which it then does not."""
        error, self._tape.interruption = self._tape.interruption, None
        return error

    def interrupt(self, error: BaseException) -> None:
        """Raise *error* into the training at the next recorded call, unless another waits there.

        What comes first says most: diagnoses come gravest first.
        """
        if self._tape.interruption is None:
            self._tape.interruption = error

    def observe(self, owner: Any, method: str, *, name: str, role: Role = "framework") -> None:
        """Record calls of a framework's method too, until `stop`.

        Args:
            owner: a class, or an object whose own attribute shadows the class's meanwhile.
            method: the attribute of *owner*.
            name: public name of what is called, such as ``accelerate.Accelerator.backward``.
            role: what the call means for training.
        """
        with self._problems:
            function = recorded(
                self._tape,
                getattr(owner, method),
                role,
                self._tape.apis.function(name, role),
                is_method=False,
                is_nesting=True,
            )
            self._patches.set(owner, method, function)

    def __enter__(self) -> Recorder:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def is_recording() -> bool:
    """Return whether a recording is under way in this process."""
    return bool(_active)


def _leave_child() -> None:
    """Make recorders inactive in a forked child: a worker's calls are not the run's."""
    for recorder in list(_active):
        recorder._tape.deactivate()
        for probe in recorder._probes:
            if isinstance(probe, FunctionsProbe):
                probe.detach()
    _active.clear()


os.register_at_fork(after_in_child=_leave_child)
