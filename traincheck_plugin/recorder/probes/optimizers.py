"""Optimizers: construction, step and zero_grad."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from traincheck_plugin.recorder.calls import OpenCall
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import subclasses_overriding
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced

Optimizer = torch.optim.Optimizer
_STEP_REGION = "Optimizer.step#"


class OptimizersProbe:
    """Observes optimizers through torch's global step hooks and patched classes.

    The hooks, and not a patched ``step``, because Accelerate and the schedulers write to the
    ``step`` of the instance. They do not run when a step raises: the profiler region that torch
    puts around every step does end then, and says so.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._patched: set[type] = set()

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Register the hooks and patch `Optimizer.__init__` and every `zero_grad`."""
        self._tape = tape
        self._patches = patches
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        patches.wrap(torch.autograd.profiler.record_function, "__exit__", self._exit)
        patches.wrap(Optimizer, "__init__", self._construct)
        for cls in subclasses_overriding(Optimizer, "zero_grad"):
            self._patch_zero_grad(cls)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._patched.clear()

    def _construct(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def __init__(self_: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            if is_traced() or not tape.is_active:
                function(self_, *args, **kwargs)
                return
            entry = None
            with tape.problems:
                # A class made after the start may have a zero_grad of its own.
                for cls in type(self_).__mro__:
                    if issubclass(cls, Optimizer) and "zero_grad" in vars(cls):
                        self._patch_zero_grad(cls)
                api = tape.apis.method(type(self_), "__init__", "construct", Optimizer)
                entry = tape.open("construct", api, subject=self_)
            try:
                function(self_, *args, **kwargs)
            except BaseException as error:
                tape.close(entry, type(error).__name__)
                raise
            with tape.problems:
                tape.variables.add_optimizer(self_)
                tape.runs.made(self_)
                if entry is not None:
                    entry.optimizer = self_
                    tape.refresh(entry)
            tape.close(entry, "")

        return __init__

    def _patch_zero_grad(self, cls: type) -> None:
        if cls in self._patched:
            return
        self._patched.add(cls)
        tape = self._tape

        def make(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def zero_grad(self_: Any, *args: Any, **kwargs: Any) -> Any:
                if is_traced() or not tape.is_listening or tape.threads.is_within("zero_grad"):
                    return function(self_, *args, **kwargs)
                optimizer = inner_optimizer(self_)
                if optimizer is not self_ and not isinstance(optimizer, cls):
                    # The method of a wrapper: what it does to the real one is seen there.
                    return function(self_, *args, **kwargs)
                return tape.around(
                    "zero_grad",
                    tape.apis.method(type(optimizer), "zero_grad", "zero_grad", Optimizer),
                    function,
                    (self_, *args),
                    kwargs,
                    subject=optimizer,
                    optimizer=optimizer,
                )

            return zero_grad

        self._patches.wrap(cls, "zero_grad", make)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        tape = self._tape
        if is_traced() or not tape.is_listening:
            return None
        with tape.problems:
            open_step = tape.threads.find("step", optimizer)
            if open_step is not None:
                open_step.num_reentered += 1
                return None
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            has_closure = callable(closure)
            entry = tape.open(
                "step",
                tape.apis.method(type(optimizer), "step", "step", Optimizer),
                subject=optimizer,
                optimizer=optimizer,
                ends_with=sys._getframe(1),
                is_deferring_frames=has_closure,
            )
            if entry is not None and has_closure:
                watched = self._watched(closure, entry)
                if len(args) > 1:
                    return (args[0], watched, *args[2:]), kwargs
                return args, {**kwargs, "closure": watched}
        return None

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        tape = self._tape
        if is_traced():
            return
        if not tape.is_listening:
            tape.passed_step(optimizer)
            return
        with tape.problems:
            entry = tape.threads.find("step", optimizer)
            if entry is None:
                return
            if entry.num_reentered:
                entry.num_reentered -= 1
            else:
                tape.close(entry, "")

    def _watched(self, closure: Callable[..., Any], entry: OpenCall) -> Callable[..., Any]:
        """Return *closure*, listened to; what the step itself does begins when it returns."""
        tape = self._tape

        @functools.wraps(closure)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not tape.is_active:
                return closure(*args, **kwargs)
            with tape.problems:
                tape.silencer.unmute()
            try:
                result = closure(*args, **kwargs)
            finally:
                with tape.problems:
                    tape.silencer.mute()
            if tape.is_active and not entry.has_begin_frames:
                with tape.problems:
                    tape.refresh(entry)
                    if entry.is_observed:
                        start_ns = time.perf_counter_ns()
                        tape.take_begin_frames(entry)
                        tape.spent_ns += time.perf_counter_ns() - start_ns
            return result

        return watched

    def _exit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        tape = self._tape

        @functools.wraps(function)
        def __exit__(  # noqa: N807
            self_: Any, kind: Any, error: Any, traceback: Any
        ) -> Any:
            if kind is not None and tape.is_active:
                with tape.problems:
                    if self_.name.startswith(_STEP_REGION):
                        self._step_raised(kind.__name__)
            return function(self_, kind, error, traceback)

        return __exit__

    def _step_raised(self, exception: str) -> None:
        for entry in reversed(self._tape.threads.stack):
            if entry.role == "step":
                if entry.num_reentered:
                    entry.num_reentered -= 1
                else:
                    self._tape.close(entry, exception)
                return


def inner_optimizer(optimizer: Any) -> Any:
    """Return the torch optimizer that a framework's wrapper holds, or *optimizer* itself."""
    for name in ("optimizer", "_optimizer"):
        inner = vars(optimizer).get(name)
        if isinstance(inner, Optimizer):
            return inner_optimizer(inner)
    return optimizer
