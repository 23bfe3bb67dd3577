"""Keeping the recorder's own code away from `torch.compile`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch  # noqa: F401  # what follows is a part of it that cannot be imported first
from torch._C._dynamo import eval_frame


def hide_from_compiler() -> None:
    """Keep `torch.compile` from compiling functions of the recorder that compiled code calls."""
    skip = _skip()
    if skip is None:
        return
    package = __name__.rpartition(".")[0]
    for name, module in list(sys.modules.items()):
        if name.startswith(package):
            for code in _codes(vars(module).values(), name):
                skip(code)


def has_compiled() -> bool:
    """Return whether `torch.compile` compiled anything in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    counters: Any = getattr(utils, "counters", {})
    return bool(counters.get("frames"))


def _skip() -> Callable[[CodeType], None] | None:
    """Return what tells torch to run code as it is; each of its versions has another way."""
    skip: Callable[[CodeType], None] | None = getattr(eval_frame, "skip_code", None)
    if skip is not None:
        return skip
    try:
        action = eval_frame._FrameAction
        strategy = eval_frame._FrameExecStrategy(action.SKIP, action.DEFAULT)
        return partial(_skip_by_strategy, strategy)
    except AttributeError:
        return None


def _skip_by_strategy(strategy: Any, code: CodeType) -> None:
    eval_frame.set_code_exec_strategy(code, strategy)


def _codes(values: Iterable[Any], module: str) -> Iterator[CodeType]:
    for value in list(values):
        if isinstance(value, type) and value.__module__ == module:
            yield from _codes(vars(value).values(), module)
        elif isinstance(value, property):
            yield from _codes([value.fget], module)
        elif isinstance(value, staticmethod):
            yield from _codes([value.__func__], module)
        elif isinstance(value, FunctionType) and value.__module__ == module:
            yield from _codes([value.__code__], module)
        elif isinstance(value, CodeType):
            yield value
            yield from _codes(value.co_consts, module)
