"""What the graph of a loss tells: it is only looked at, and no tensor on a device is read."""

from __future__ import annotations

import math
import re
from collections import deque
from functools import cache
from typing import Any, NamedTuple

import torch

from traincheck_plugin.vocabulary import BROADCAST, CONSTANT, LAYER

MAX_FACTORS = 8
MAX_NODES = 32
"""Operations of a loss that are looked at, those next to it first."""

MAX_INPUTS = 4
"""Inputs of one operation that are looked at: those of a stack are all alike."""

_PASSED = "traincheck_plugin.passed"
_LEAF = "AccumulateGrad"
_COMPILED = "CompiledFunction"
_CAST = "ToCopyBackward0"
_DIVISION = "DivBackward0"
_FACTORS = {"MulBackward0": 1, _DIVISION: -1}
_NUMBERS = frozenset({torch.float64, torch.int64})
"""What Python numbers become in a graph. The scale of a gradient scaler is float32."""

_SHAPES = frozenset(
    {
        *("Alias", "AsStrided", "Clone", "Expand", "Permute", "ReshapeAlias", "SplitWithSizes"),
        *("Squeeze", "T", "ToCopy", "Transpose", "UnsafeView", "Unsqueeze", "View"),
    }
)
"""What only arranges values anew, or gives them another dtype."""

_PRODUCTS = frozenset(
    {
        *("Addbmm", "Addmm", "Addmv", "Baddbmm", "Bmm", "Convolution", "Embedding", "Linear"),
        *("Mm", "Mv"),
    }
)
"""What ends a loss, though a frozen layer shows no parameters."""

_REDUCTIONS = frozenset({"Mean", "Sum"})
"""What tells of the shape that it is given: two shapes that do not fit are broadcast."""

_LOSS, _EXPAND, _GATHER = "Loss", "Expand", "Gather"

_VERSION = re.compile(r"Backward\d*$")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def was_passed(node: Any) -> bool:
    """Return whether a backward went through *node* before; note that one does now.

    The note is kept with the graph itself, which holds activations and must not be kept by us.
    """
    if node.name().endswith(_LEAF):
        return False
    metadata = node.metadata
    passed = _PASSED in metadata
    metadata[_PASSED] = True
    return passed


def constant_factor(node: Any) -> tuple[float, Any]:
    """Return the product of the numbers that the result of *node* was multiplied or divided by.

    NaN where it was divided by a tensor, as by the number of tokens in all micro-batches, and where
    compiled code hides them.

    Returns:
        The product, and the node whose result was multiplied.
    """
    factor = 1.0
    for _ in range(MAX_FACTORS):
        if node.name().startswith(_COMPILED):
            return math.nan, node
        power = _FACTORS.get(node.name())
        inputs = [inner for inner, _ in node.next_functions if inner is not None]
        if len(inputs) != 1 or (power is None and node.name() != _CAST):
            break
        if power is not None:
            number = _kept(node._raw_saved_other)
            if number is not None and number.dim() == 0:
                if number.is_cpu and number.dtype in _NUMBERS:
                    factor *= float(number) ** power
                elif node.name() == _DIVISION:
                    factor = math.nan
        node = inputs[0]
    return factor, node


Operations = dict[Any, tuple[str, list[Any]]]
"""Of each node its name, and the nodes whose results it takes; None stands for a constant."""


def operations(node: Any) -> Operations:
    """Return what computes the result of *node* from what the last layers return.

    The last operation comes first.
    """
    known = {node: _operation(node)}
    waiting = deque(known)
    while waiting:
        for inner in known[waiting.popleft()][1]:
            if inner is not None and inner not in known and len(known) < MAX_NODES:
                known[inner] = _operation(inner)
                waiting.append(inner)
    return known


def formula(known: Operations) -> str:
    """Return a text that tells how a loss is computed.

    Returns:
        ``operation<operation`` for each that takes what another returns, sorted, with spaces
        between: ``log_softmax<layer nll_loss<log_softmax``. A mean and a sum tell the number of
        dimensions of what they are given: ``mean[2d]<pow``. What is given no gradient is
        `CONSTANT`, and `BROADCAST` is told of a loss besides. "" where compiled code hides the
        formula.
    """
    pairs = set()
    for outer, (name, inputs) in known.items():
        if _is_broadcast(outer):
            pairs.add(f"{name}<{BROADCAST}")
        for inner in inputs:
            if inner is None:
                pairs.add(f"{name}<{CONSTANT}")
            elif inner in known:
                taken, _ = known[inner]
                if taken is _COMPILED:
                    return ""
                pairs.add(f"{name}<{taken}")
    return " ".join(sorted(pairs))


class Target(NamedTuple):
    """What a loss compares predictions with.

    Attributes:
        operation: that does: ``nll_loss``.
        values: the tensor.
        ignored: the value of elements that do not count; None where all do.
    """

    operation: str
    values: torch.Tensor
    ignored: int | None


def targets(known: Operations) -> list[Target]:
    """Return what a loss compares predictions with, as far as its graph keeps it."""
    found = []
    for node, (name, _) in known.items():
        attribute = _target_of(node)
        values = _kept(getattr(node, attribute, None)) if attribute else None
        if values is not None:
            ignored = getattr(node, "_saved_ignore_index", None)
            if ignored is not None and ignored >= 1 << 63:
                ignored -= 1 << 64
            found.append(Target(name, values, ignored))
    return found


def _kept(saved: Any) -> torch.Tensor | None:
    """Return the tensor that a graph keeps; None where hooks do, or torch does not tell."""
    # Hooks on what is saved are the user's, and may compute.
    return saved.data if getattr(saved, "unpack_hook", saved) is None else None


def _target_of(node: Any) -> str:
    """Return the attribute with what *node* compares predictions with, or picks of them."""
    if _kind(node.name()) == _GATHER:
        return "_raw_saved_index"
    if not hasattr(node, "_raw_saved_target"):
        return ""
    is_constant = [inner is None for inner, _ in node.next_functions[:2]]
    if is_constant == [True, False]:
        # The two were given the other way round.
        return "_raw_saved_self"
    return "" if is_constant == [False, False] else "_raw_saved_target"


@cache
def _kind(name: str) -> str:
    return _VERSION.sub("", name)


@cache
def _spelled(name: str) -> str:
    kind = _kind(name)
    if kind.startswith(_COMPILED):
        return _COMPILED
    return LAYER if kind in _PRODUCTS else _WORDS.sub("_", kind).lower()


def _unshaped(node: Any) -> Any:
    """Return the operation whose result *node* gives another shape or dtype, if it does."""
    for _ in range(MAX_NODES):
        if node is None or _kind(node.name()) not in _SHAPES:
            break
        node = node.next_functions[0][0]
    return node


def _is_broadcast(node: Any) -> bool:
    """Return whether a loss is given n predictions as n times n."""
    if not _kind(node.name()).endswith(_LOSS):
        return False
    for inner, _ in node.next_functions[:MAX_INPUTS]:
        if inner is not None and _kind(inner.name()) == _EXPAND:
            before = getattr(inner, "_saved_self_sym_sizes", None)
            after = [result.shape for result in getattr(inner, "_input_metadata", ())]
            if before and after and 1 < math.prod(before) == math.prod(after[0]) ** 0.5:
                return True
    return False


def _operation(node: Any) -> tuple[str, list[Any]]:
    """Return the name of an operation, and those whose results it takes; None is a constant."""
    inputs = []
    name = _spelled(node.name())
    if name is not LAYER:
        for inner, _ in node.next_functions[:MAX_INPUTS]:
            inner = _unshaped(inner)
            if inner is not None and inner.name().endswith(_LEAF):
                return LAYER, []
            inputs.append(inner)
    if _kind(node.name()) in _REDUCTIONS:
        sizes = getattr(node, "_saved_self_sym_sizes", None)
        name = name if sizes is None else f"{name}[{len(sizes)}d]"
    return name, inputs
