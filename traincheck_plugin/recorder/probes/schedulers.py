"""Learning-rate schedulers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded, subclasses_overriding
from traincheck_plugin.recorder.tape import Tape


class SchedulersProbe:
    """Observes ``step`` of every scheduler, but not the one that its constructor makes."""

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch every class that defines ``step``, and the constructors."""
        self._tape = tape
        self._patches = patches
        self._patched: set[type] = set()
        self._num_constructing = 0
        patches.wrap(LRScheduler, "__init__", self._constructing)
        patches.wrap(LRScheduler, "_initial_step", self._constructing)
        # A base class of its own in older versions of torch.
        for root in (LRScheduler, ReduceLROnPlateau):
            for cls in subclasses_overriding(root, "step"):
                self._patch_step(cls)

    def detach(self) -> None:
        """Nothing beyond the patches."""

    def _patch_step(self, cls: type) -> None:
        if cls in self._patched:
            return
        self._patched.add(cls)
        self._patches.wrap(cls, "step", self._recorded)

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        def api(scheduler: Any) -> int:
            root = LRScheduler if isinstance(scheduler, LRScheduler) else ReduceLROnPlateau
            return tape.apis.method(type(scheduler), "step", "scheduler", root)

        observed = recorded(
            tape,
            function,
            "scheduler",
            api,
            optimizer=lambda scheduler, *_: getattr(scheduler, "optimizer", None),
        )

        @functools.wraps(function)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            called = function if self._num_constructing else observed
            return called(scheduler, *args, **kwargs)

        return step

    def _constructing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def construct(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            for cls in type(scheduler).__mro__:
                # A class made after the start may have a step of its own.
                if self._tape.is_active and issubclass(cls, LRScheduler) and "step" in vars(cls):
                    self._patch_step(cls)
            self._num_constructing += 1
            try:
                return function(scheduler, *args, **kwargs)
            finally:
                self._num_constructing -= 1

        return construct
