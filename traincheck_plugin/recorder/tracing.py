"""Telling when Python runs not to compute but to be watched, or computes with something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import _symbolic_trace

_is_compiling: Callable[[], bool] = torch.compiler.is_compiling
_is_jit_tracing: Callable[[], bool] = torch._C._is_tracing
_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
_num_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_mode: Callable[[Any], Any] = torch._C._get_dispatch_mode
_Mode = torch._C._TorchDispatchModeKey
_SYMBOLIC = (_Mode.FAKE, _Mode.PROXY, _Mode.FUNCTIONAL)


def is_traced() -> bool:
    """Return whether tensors stand for others now, so that nothing is to be recorded.

    Under `torch.compile` and `torch.export`, `torch.jit.trace`, `torch.fx`, fake tensors and the
    transforms of `torch.func` a tensor has no values of its own, its shape may hold symbols, and
    whatever is done with it becomes part of a graph or of a gradient. Every probe asks this first.
    It takes a quarter of a microsecond.
    """
    # The compiler takes the first for true, and looks no further.
    return (
        _is_compiling()
        or _transform() is not None
        or _is_jit_tracing()
        or _symbolic_trace._is_fx_tracing_flag
        or (_num_modes() > 0 and any(_mode(key) is not None for key in _SYMBOLIC))
    )


def is_transformed() -> bool:
    """Return whether, of all that `is_traced` tells, it is only a transform of `torch.func`."""
    return (
        not _is_compiling()
        and _transform() is not None
        and not _is_jit_tracing()
        and not _symbolic_trace._is_fx_tracing_flag
        and not _num_modes()
    )
