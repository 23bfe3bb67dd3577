"""Modules: forwards of roots, train and eval, zero_grad."""

from __future__ import annotations

import functools
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from traincheck_plugin.events import Frame
from traincheck_plugin.recorder.aliases import AliasReader
from traincheck_plugin.recorder.calls import Doorbell, OpenCall, ThreadState
from traincheck_plugin.recorder.compiler import has_compiled
from traincheck_plugin.recorder.discovery import ModulesAlive
from traincheck_plugin.recorder.modes import ModeReader
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.probes.base import recorded
from traincheck_plugin.recorder.sequences import SequenceReader
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced, is_transformed
from traincheck_plugin.vocabulary import NONE, Role

Module = torch.nn.Module
is_compiling: Callable[[], bool] = torch.compiler.is_compiling
is_grad_enabled: Callable[[], bool] = torch.is_grad_enabled

_ABOUT_HOOKS = r"Using `torch\.compile\(module\)` when there are global hooks"
MAX_STRAYS = 64
"""Modules that run within one to which they do not belong: more are not looked at."""

_FAST_PATHS = (
    torch.nn.MultiheadAttention,
    torch.nn.TransformerEncoderLayer,
    torch.nn.TransformerEncoder,
)
"""Modules that compute differently while a torch function mode is active: their fused inference
kernels are skipped. The mode is taken off while they run without gradients."""


class ModulesProbe(Doorbell):
    """Observes the forwards that no other forward encloses, through torch's global hooks."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._filter: Any = None

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Register the hooks and patch the methods of `Module` itself."""
        self._tape = tape
        self._threads: ThreadState = tape.threads
        self._runs = tape.runs
        self._parts: set[int] = set()
        self._parts_of: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()
        self._num_strays = 0
        self._has_parameters: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._muting: list[int] = []
        self._aliases = AliasReader()
        self._modes = ModeReader()
        self._sequences = SequenceReader()
        self._sequential: dict[int, tuple[str, str]] = {}
        tape.doorbell = self
        self.resume()
        # Meant for people who registered the hooks themselves.
        warnings.filterwarnings("ignore", message=_ABOUT_HOOKS, category=UserWarning)
        self._filter = warnings.filters[0]
        # What makes a module; copies and what is unpickled get their state set instead.
        for name in ("__init__", "__setstate__"):
            patches.wrap(Module, name, partial(_noted, tape.variables.modules_alive))
        methods: dict[str, Role] = {"train": "mode", "eval": "mode", "zero_grad": "zero_grad"}
        for name, role in methods.items():
            code = tape.apis.function(
                f"torch.nn.Module.{name}", role, f"torch.nn.modules.module.Module.{name}"
            )
            patches.set(Module, name, recorded(tape, vars(Module)[name], role, code))

    def resume(self) -> None:
        """Register the hooks."""
        if not self._handles:
            self._handles = [
                register_module_forward_pre_hook(self._before_forward),
                register_module_forward_hook(
                    self._after_forward, with_kwargs=True, always_call=True
                ),
            ]

    def pause(self) -> None:
        """Remove the hooks: while there are some, torch is slow to call any module."""
        # What was compiled with them would be compiled again without.
        if not has_compiled():
            self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
            # torch forgets to.
            torch.nn.modules.module._global_forward_hooks_with_kwargs.pop(handle.id, None)
        self._handles.clear()

    def detach(self) -> None:
        """Remove the hooks."""
        self._remove()
        self._tape.variables.modules_alive.forget()
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]

    def _before_forward(self, module: Any, args: Any) -> None:
        # The compiler takes this for true, and looks no further.
        if is_compiling():
            return
        thread = self._threads
        key = id(module)
        # Most calls: the part of a module that is known not to be traced.
        if thread.root_id and key != thread.root_id and key in self._parts and thread.number == 0:
            self._note_run(module, key, args)
            return
        if is_traced():
            if is_transformed():
                self._note_transformed(module)
            return
        if not thread.root_id:
            if thread.number == 0:
                self._unmute_interrupted()
            self._before_root(thread, module)
        elif thread.root_id == key:
            thread.root_depth += 1
        elif key not in self._parts and thread.number == 0:
            self._examine(module)
        if thread.number == 0:
            self._note_run(module, key, args)

    def _note_run(self, module: Any, key: int, args: Any) -> None:
        """Note that a module runs."""
        self._runs.note(key)
        if not is_grad_enabled():
            if type(module) in _FAST_PATHS:
                self._mute_within(key)
        elif key in self._sequential:
            tape = self._tape
            tape.silencer.mute()
            with tape.problems:
                self._sequences.note(module, args)
            tape.silencer.unmute()

    def _mute_within(self, key: int) -> None:
        """Listen to no functions until the forward of the module with this id is over."""
        self._tape.silencer.mute()
        self._muting.append(key)

    def _unmute_interrupted(self) -> None:
        """Listen again after a forward of which an interrupt hid the end."""
        while self._muting:
            self._muting.pop()
            self._tape.silencer.unmute()

    def _note_transformed(self, module: Any) -> None:
        """Know that a module runs within `torch.func.grad`, say: it may be trained in this way."""
        tape, thread = self._tape, self._threads
        if thread.number == 0:
            self._runs.note(id(module))
        if tape.is_listening and not thread.root_id and self._owns_parameters(module):
            with tape.problems:
                tape.variables.add_forward(module)
                tape.passed_forward(torch.is_grad_enabled() and module.training)

    def _before_root(self, thread: ThreadState, module: Any) -> None:
        tape = self._tape
        # A recomputation of activation checkpointing is part of the backward pass.
        if not tape.is_listening or tape.num_backwards_open:
            return
        key = id(module)
        module = _uncompiled(module)
        with tape.problems:
            training = None
            if self._owns_parameters(module):
                tape.variables.add_forward(module)
                training = torch.is_grad_enabled() and module.training
            entry = tape.open(
                "forward",
                tape.apis.method(type(module), "forward", "forward", Module),
                subject=module,
                training=training,
                ends_with=sys._getframe(2),
            )
            if entry is not None:
                thread.root_id = key
                if training:
                    entry.trains = True
                    tape.note(entry, tape.arguments.of_generators)
                self._enter_root(module)
                if id(module) != key:
                    # Compiled code would have to be compiled with the mode in it.
                    self._mute_within(key)

    def _enter_root(self, module: Any) -> None:
        """Know the parts of the outermost module that runs."""
        parts = self._parts_of.get(module)
        if parts is None:
            parts = self._parts_of[module] = {id(part) for part in module.modules()}
        self._parts = parts
        if self._tape.arguments.tells_sequences:
            self._sequences.enter(module)
            self._sequential = self._sequences.modules

    def _examine(self, module: Any) -> None:
        """Look at a module that runs within another and was not known as part of it."""
        # An evaluation before the training says nothing of what is trained.
        if not torch.is_grad_enabled():
            return
        tape = self._tape
        entry = next((e for e in reversed(tape.threads.stack) if e.role == "forward"), None)
        if entry is None or self._num_strays >= MAX_STRAYS:
            return
        with tape.problems:
            # Parts may have been added since the root was entered first.
            self._parts.update(id(part) for part in entry.subject.modules())
            if id(module) in self._parts:
                return
            self._parts.update(id(part) for part in module.modules())
            if any(p.requires_grad for p in module.parameters()):
                self._num_strays += 1
                tape.variables.add_stray(module)

    def _after_forward(self, module: Any, args: Any, *rest: Any) -> None:
        if is_compiling():
            return
        thread = self._threads
        key = id(module)
        if (key != thread.root_id and not self._muting) or is_traced():
            return
        if self._muting and self._muting[-1] == key and thread.number == 0:
            self._muting.pop()
            self._tape.silencer.unmute()
        if thread.root_id != key:
            return
        if thread.root_depth:
            thread.root_depth -= 1
            return
        thread.root_id = 0
        tape = self._tape
        with tape.problems:
            entry = thread.find("forward", _uncompiled(module))
            if entry is None:
                return
            # After an exception torch passes no keywords: (module, args, result).
            kwargs, result = rest if len(rest) == 2 else (None, rest[-1])
            error = sys.exc_info()[0] if len(rest) == 1 else None
            outputs = NONE
            if entry.is_observed:
                entry.inputs = tape.signatures.arguments(args, kwargs)
                if error is None and result is not None:
                    outputs = tape.signatures.result(result)
                if entry.trains:
                    # Before the forward torch does not tell the keywords.
                    sequences = self._sequences.take()

                    def frames(call: OpenCall) -> list[Frame]:
                        told = tape.arguments.of_forward(call, args, kwargs, sequences)
                        return told + tape.arguments.of_aliases(call, self._aliases)

                    tape.note(entry, frames)
                elif not is_grad_enabled() and self._owns_parameters(module):
                    tape.note(
                        entry,
                        lambda call: tape.arguments.of_evaluation(call, args, kwargs, self._modes),
                    )
            tape.close(entry, error.__name__ if error is not None else "", outputs)

    def _owns_parameters(self, module: Any) -> bool:
        known = self._has_parameters.get(module)
        if not known:
            known = next(module.parameters(), None) is not None
            self._has_parameters[module] = known
        return known


def _noted(alive: ModulesAlive, function: Callable[..., None]) -> Callable[..., None]:
    """Return what makes a module, which then is noted; torch may keep it, so it holds no more."""

    @functools.wraps(function)
    def make(module: Any, *args: Any, **kwargs: Any) -> None:
        function(module, *args, **kwargs)
        if not torch.compiler.is_compiling():
            alive.note(module)

    return make


def _uncompiled(module: Any) -> Any:
    """Return the user's module inside what `torch.compile` made of it."""
    if type(module).__name__ == "OptimizedModule":
        return module._modules.get("_orig_mod", module)
    return module
