"""Learning-rate schedulers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded, subclasses_overriding
from traincheck_plugin.recorder.probes.optimizers import inner_optimizer
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced
from traincheck_plugin.vocabulary import NONE

MAX_METRICS = 1024
"""Metrics that are told: each is a text of its own in the catalog."""

_LENGTHS = ("total_steps", "T_max", "total_iters")
"""Where schedules keep the number of moves that they are made for."""


class SchedulersProbe:
    """Observes the construction of every scheduler and its ``step``.

    The step that a constructor makes is not observed. Calls name the optimizer they are about.
    """

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Patch every class that defines ``step``, and the constructors."""
        self._tape = tape
        self._patches = patches
        self._patched: set[type] = set()
        self._constructed: set[type] = set()
        self._num_constructing = self._num_metrics = 0
        # Those that chain others, and ReduceLROnPlateau, do without the constructor of the base.
        for root in (LRScheduler, ReduceLROnPlateau):
            for cls in subclasses_overriding(root, "__init__"):
                if cls not in self._constructed:
                    self._constructed.add(cls)
                    patches.wrap(cls, "__init__", self._constructing)
        patches.wrap(LRScheduler, "_initial_step", self._initial)
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
            return tape.apis.method(type(scheduler), "step", "scheduler", _root(scheduler))

        observed = recorded(
            tape,
            function,
            "scheduler",
            api,
            is_summarised=True,
            optimizer=lambda scheduler, *_: _optimizer(scheduler),
            outcome=self._came_to,
        )

        @functools.wraps(function)
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            called = function if self._num_constructing else observed
            return called(scheduler, *args, **kwargs)

        return step

    def _came_to(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], _: Any) -> int:
        """Return the code of what there is to tell of a scheduler that moved."""
        scheduler = args[0]
        told: dict[str, str] = {}
        if isinstance(scheduler, ReduceLROnPlateau):
            metric = (*args[1:], kwargs.get("metrics"))[0]
            if metric is not None and self._num_metrics < MAX_METRICS:
                self._num_metrics += 1
                # The scheduler waited for it already, wherever it was computed.
                told = {"mode": str(scheduler.mode), "metric": repr(float(metric))}
        else:
            lengths = [vars(scheduler).get(name) for name in _LENGTHS]
            told.update(("length", str(one)) for one in lengths if type(one) is int)
            if vars(scheduler).get("last_epoch") == 1:
                told["first"] = "yes"
        code = NONE
        for path, text in told.items():
            code = self._tape.signatures.extended(code, path, text)
        return code

    def _constructing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def construct(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if is_traced() or not tape.is_active or self._num_constructing:
                return self._without_steps(function, scheduler, args, kwargs)
            entry = None
            with tape.problems:
                for cls in type(scheduler).__mro__:
                    # A class made after the start may have a step of its own.
                    if issubclass(cls, LRScheduler) and "step" in vars(cls):
                        self._patch_step(cls)
                api = tape.apis.method(type(scheduler), "__init__", "construct", _root(scheduler))
                entry = tape.open("construct", api, subject=scheduler)
            try:
                result = self._without_steps(function, scheduler, args, kwargs)
            except BaseException as error:
                tape.close(entry, type(error).__name__)
                raise
            with tape.problems:
                optimizer = _optimizer(scheduler)
                if entry is not None and optimizer is not None:
                    tape.is_about(entry, optimizer)
            tape.close(entry, "")
            return result

        return construct

    def _initial(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def initial(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            return self._without_steps(function, scheduler, args, kwargs)

        return initial

    def _without_steps(
        self,
        function: Callable[..., Any],
        scheduler: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._num_constructing += 1
        try:
            return function(scheduler, *args, **kwargs)
        finally:
            self._num_constructing -= 1


def _root(scheduler: Any) -> type:
    return LRScheduler if isinstance(scheduler, LRScheduler) else ReduceLROnPlateau


def _optimizer(scheduler: Any) -> Any:
    """Return the torch optimizer whose learning rates a scheduler sets, None if it has none."""
    optimizer = getattr(scheduler, "optimizer", None)
    return inner_optimizer(optimizer) if isinstance(optimizer, Optimizer) else None
