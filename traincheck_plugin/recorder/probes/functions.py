"""Public torch functions, at the boundary.

What user and framework code calls, not what that calls in turn.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from traincheck_plugin.recorder.calls import Silencer
from traincheck_plugin.recorder.patching import Patches
from traincheck_plugin.recorder.tape import Tape
from traincheck_plugin.recorder.tracing import is_traced
from traincheck_plugin.recorder.windows import MAX_CALLS
from traincheck_plugin.vocabulary import NONE, Api

_UNKNOWN = -2
_clock = time.perf_counter_ns
_OPERATORS = frozenset(
    f"__{name}__"
    for name in (
        "add",
        "sub",
        "mul",
        "matmul",
        "pow",
        "neg",
        "abs",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
)
"""Operators that have a method of the same name and meaning; `__bool__`, say, has only the name."""
_resolve: Callable[[Any], str | None] = resolve_name
_top_mode: Callable[[], TorchFunctionMode | None] = torch.overrides._get_current_function_mode
_push: Callable[[TorchFunctionMode], None] = torch.overrides._push_mode
_pop: Callable[[], TorchFunctionMode] = torch.overrides._pop_mode


class FunctionsProbe(Silencer):
    """Records public torch functions through a `TorchFunctionMode` on the thread that attaches.

    While muted, the mode is taken off the stack where possible, so that what optimizers and data
    sets compute costs nothing.
    """

    def __init__(self, functions: frozenset[str] | None) -> None:
        self._functions = functions
        self._mode: _Listener | None = None
        self._thread = 0
        self._num_muted = 0
        self._is_pushed = False

    def attach(self, tape: Tape, patches: Patches) -> None:
        """Put the mode on the stack of this thread."""
        # Built once and cached by torch, from the functions before they are patched.
        _resolve(torch.relu)
        self._thread = threading.get_ident()
        self._mode = _Listener(tape, self._functions)
        tape.silencer = self
        _push(self._mode)
        self._is_pushed = True

    def detach(self) -> None:
        """Take the mode off the stack, wherever in it it is."""
        if self._mode is None:
            return
        self._mode.is_muted = True
        if self._is_pushed and threading.get_ident() == self._thread:
            above = []
            while (top := _top_mode()) is not None and top is not self._mode:
                above.append(_pop())
            if top is self._mode:
                _pop()
            for mode in reversed(above):
                _push(mode)
            self._is_pushed = False
        self._mode = None

    def mute(self) -> None:
        """Stop listening until the matching `unmute`."""
        mode = self._mode
        if mode is None or threading.get_ident() != self._thread:
            return
        self._num_muted += 1
        if self._num_muted == 1:
            mode.is_muted = True
            if self._is_pushed and _top_mode() is mode:
                _pop()
                self._is_pushed = False

    def unmute(self) -> None:
        """Listen again."""
        mode = self._mode
        if mode is None or threading.get_ident() != self._thread:
            return
        self._num_muted -= 1
        if self._num_muted == 0:
            mode.is_muted = False
            if not self._is_pushed:
                _push(mode)
                self._is_pushed = True


class _Listener(TorchFunctionMode):
    """Records the functions that it is asked to run; called by torch with the mode off."""

    def __init__(self, tape: Tape, functions: frozenset[str] | None) -> None:
        super().__init__()
        self.is_muted = False
        self._tape = tape
        self._functions = functions
        self._apis: dict[Any, int] = {}
        self._stack = tape.threads.stack
        self._arguments = tape.signatures.arguments
        self._result = tape.signatures.result
        self._context = tape.tracker.code
        self._here = tape.sources.here
        self._draws = tape.draws
        self._cuts = tape.cuts
        self._derivations = tape.derivations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self.is_muted or is_traced():
            return func(*args, **(kwargs or {}))
        # This runs hundreds of times in a step, so with plain `try` in place of the guard.
        tape = self._tape
        start_ns = _clock()
        inputs = outputs = context = source = exception = NONE
        try:
            api = self._apis.get(func, _UNKNOWN)
            if api == _UNKNOWN:
                api = self._apis[func] = self._api(func)
            if api != NONE:
                inputs = self._arguments(args, kwargs)
                context = self._context()
                source = self._here(sys._getframe(1))
        except Exception as error:  # noqa: BLE001  # whatever it is must not reach the training
            tape.problems.note_failure(error)
            api = NONE
        if api == NONE:
            result = func(*args, **(kwargs or {}))
            end_ns = _clock()
            self._follow(func, args, kwargs, result, sys._getframe(1))
            tape.spent_ns += _clock() - end_ns
            return result
        call = tape.next_call()
        begin = tape.next_sequence()
        begin_ns = end_ns = _clock()
        try:
            result = func(*args, **kwargs) if kwargs else func(*args)
            end_ns = _clock()
        except BaseException as error:
            end_ns = _clock()
            exception = tape.catalog.strings.code(type(error).__name__)
            raise
        finally:
            if exception == NONE:
                self._follow(func, args, kwargs, result, sys._getframe(1))
            if exception == NONE and result is not None:
                try:
                    outputs = self._result(result)
                except Exception as error:  # noqa: BLE001  # likewise
                    tape.problems.note_failure(error)
            stack = self._stack
            origin_ns = tape.start_ns
            rows = tape.reel.rows
            rows.append(
                (
                    call,
                    stack[-1].call if stack else NONE,
                    api,
                    NONE,
                    begin,
                    tape.next_sequence(),
                    begin_ns - origin_ns,
                    end_ns - origin_ns,
                    context,
                    source,
                    inputs,
                    outputs,
                    exception,
                    0,
                )
            )
            tape.spent_ns += begin_ns - start_ns + _clock() - end_ns
            if len(rows) >= MAX_CALLS:
                tape.cut_if_too_long()
        return result

    def _follow(
        self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any, frame: FrameType
    ) -> None:
        """Tell where tensors go, but for those that a backward computes anew."""
        stack = self._stack
        outer = stack[-1] if stack else None
        if outer is not None and outer.role == "backward":
            return
        forward = outer if outer is not None and outer.role == "forward" else None
        try:
            self._draws.observe(func, args, kwargs, result)
            self._cuts.observe(func, args, kwargs, result)
            self._derivations.observe(func, args, kwargs, result, frame, forward)
        except Exception as error:  # noqa: BLE001  # likewise
            self._tape.problems.note_failure(error)

    def _api(self, func: Any) -> int:
        name = public_name(func)
        if name is None or (self._functions is not None and name not in self._functions):
            return NONE
        return self._tape.catalog.apis.code(Api(name=name, names=(name,), role="function"))


def public_name(func: Any) -> str | None:
    """Return the public name of a torch function, or None if it has none.

    Attribute access, conversions and private functions have none; operators go by the name of the
    method they stand for.
    """
    name = _resolve(func)
    if name is None or not name.startswith("torch."):
        return None
    path, _, last = name.rpartition(".")
    if last in ("__get__", "__set__", "__delete__"):
        return None
    if last in _OPERATORS and path == "torch.Tensor":
        return f"torch.Tensor.{last.strip('_')}"
    if any(part.startswith("_") for part in name.split(".")):
        return None
    return name
