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
LEAF = "AccumulateGrad"
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
        *("Index", "IndexSelect", "MaskedSelect", "Select", "Slice", "Split", "Unbind"),
    }
)
"""What only arranges values anew, gives them another dtype, or takes some of them."""

_PRODUCTS = frozenset(
    {
        *("Addbmm", "Addmm", "Addmv", "Baddbmm", "Bmm", "Convolution", "Embedding", "Linear"),
        *("Mm", "Mv"),
    }
)
"""What ends a loss, though a frozen layer shows no parameters."""

_REDUCTIONS = frozenset({"Mean", "Sum"})
"""What tells of the shape that it is given: two shapes that do not fit are broadcast."""

_LOSS, _DIFFERENCE, _PRODUCT, _EXPAND, _GATHER = "Loss", "Sub", "Mul", "Expand", "Gather"

_FROM = [True, False]
"""Of the inputs of a difference, which are constant where something is subtracted from one."""

_EVEN = frozenset({"abs", "linalg_vector_norm", "norm", "pow", "square"})
"""What gives the same for a difference and for its negative."""

_VERSION = re.compile(r"Backward\d*$")
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9])(?=[A-Z][a-z])")


def was_passed(node: Any) -> bool:
    """Return whether a backward went through *node* before; note that one does now.

    The note is kept with the graph itself, which holds activations and must not be kept by us.
    """
    if node.name().endswith(LEAF):
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
            number = kept(node._raw_saved_other)
            if number is not None and number.dim() == 0:
                if _is_number(number):
                    factor *= float(number) ** power
                elif node.name() == _DIVISION:
                    factor = math.nan
        node = inputs[0]
    return factor, node


Nodes = list[tuple[Any, str]]
"""Nodes of an autograd graph, each with what `kind_of` returns of its name."""

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
        ``operation(input,input)`` for each operation, with those whose results it takes, sorted,
        with spaces between: ``log_softmax(layer) nll_loss(log_softmax)``. A mean and a sum tell the
        number of dimensions of what they are given: ``mean[2d](pow)``. What is given no gradient is
        `CONSTANT`, and `BROADCAST` is told of a loss or a difference besides. What is subtracted
        from a constant is told as such, by ``rsub``, unless the sign does not matter. "" where
        compiled code hides the formula.
    """
    told = set()
    reversed_ = _reversed(known)
    for outer, (name, inputs) in known.items():
        names = [
            CONSTANT if inner is None else reversed_.get(inner, known[inner][0])
            for inner in inputs
            if inner is None or inner in known
        ]
        name = reversed_.get(outer, name)
        if _COMPILED in names:
            return ""
        if _is_broadcast(outer):
            names.append(BROADCAST)
        if names:
            told.add(f"{name}({','.join(_few(sorted(names)))})")
    return " ".join(sorted(told))


def _reversed(known: Operations) -> dict[Any, str]:
    """Return the differences in which something is subtracted from a constant, and their name."""
    found = {
        node
        for node, (_, inputs) in known.items()
        if kind_of(node.name()) == _DIFFERENCE and [inner is None for inner in inputs] == _FROM
    }
    for name, inputs in known.values():
        # A product of one with itself is a square, too.
        is_even = name in _EVEN or (len(inputs) == 2 and inputs[0] is inputs[1])
        found.difference_update(inputs if is_even else ())
    return dict.fromkeys(found, "rsub")


def _few(names: list[str]) -> list[str]:
    """Return names with one that comes more than twice told twice: a stack has any number."""
    return [name for place, name in enumerate(names) if names[place - 2 : place] != [name] * 2]


class Target(NamedTuple):
    """What a loss compares predictions with.

    Attributes:
        operation: that does: ``nll_loss``.
        values: the tensor.
        ignored: the value of elements that do not count; None where all do.
        is_weighted: whether elements may count otherwise: by weights of their classes, or since
            what they add is not summed up yet.
    """

    operation: str
    values: torch.Tensor
    ignored: int | None
    is_weighted: bool = False


def targets(known: Operations) -> list[Target]:
    """Return what a loss compares predictions with, as far as its graph keeps it."""
    found = []
    for node, (name, _) in known.items():
        attribute = _target_of(node)
        values = kept(getattr(node, attribute, None)) if attribute else None
        if values is not None:
            ignored = getattr(node, "_saved_ignore_index", None)
            is_summed = getattr(node, "_saved_reduction", 0) != 0
            is_weighted = not is_summed or is_given(getattr(node, "_raw_saved_weight", None))
            ignored = None if ignored is None else wrapped(ignored)
            found.append(Target(name, values, ignored, is_weighted))
    return found


def predictions(known: Operations) -> list[tuple[str, torch.Tensor]]:
    """Return what a loss compares with its targets, as far as its graph keeps it, by operations."""
    found = []
    for node, (name, _) in known.items():
        if _target_of(node) == "_raw_saved_target":
            values = kept(getattr(node, "_raw_saved_self", None))
            if values is not None:
                found.append((name, values.detach()))
    return found


def kept(saved: Any) -> torch.Tensor | None:
    """Return the tensor that a graph keeps; None where hooks do, or torch does not tell."""
    if saved is None:
        return None
    # Hooks on what is saved are the user's, and may compute.
    return saved.data if getattr(saved, "unpack_hook", saved) is None else None


def is_given(saved: Any) -> bool:
    """Return whether an operation was given a tensor: one that hooks took over is one, too."""
    return saved is not None and (
        getattr(saved, "unpack_hook", None) is not None or kept(saved) is not None
    )


def wrapped(number: int) -> int:
    """Return the number that a graph keeps, which tells negative ones without their sign."""
    return number - (1 << 64) if number >= 1 << 63 else number


@cache
def kind_of(name: str) -> str:
    """Return the name of a node without that of its version: ``NllLoss``."""
    return _VERSION.sub("", name)


@cache
def spelled(name: str) -> str:
    """Return what the operation of a node is called: ``nll_loss``."""
    kind = kind_of(name)
    if kind.startswith(_COMPILED):
        return _COMPILED
    return LAYER if kind in _PRODUCTS else _WORDS.sub("_", kind).lower()


def _is_number(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a Python number: a graph keeps those on the CPU."""
    return tensor.dim() == 0 and tensor.is_cpu and tensor.dtype in _NUMBERS


def _target_of(node: Any) -> str:
    """Return the attribute with what *node* compares predictions with, or picks of them."""
    if kind_of(node.name()) == _GATHER:
        return "_raw_saved_index"
    if not hasattr(node, "_raw_saved_target"):
        return ""
    is_constant = [inner is None for inner, _ in node.next_functions[:2]]
    if is_constant == [True, False]:
        # The two were given the other way round.
        return "_raw_saved_self"
    return "" if is_constant == [False, False] else "_raw_saved_target"


def _unshaped(node: Any) -> Any:
    """Return the operation whose result *node* only arranges, or multiplies by a number.

    None where the number is 0: what is multiplied is as good as a constant.
    """
    for _ in range(MAX_NODES):
        if node is None:
            break
        number = _number_of(node)
        if number is None and kind_of(node.name()) not in _SHAPES:
            break
        if number == 0:
            return None
        node = next((inner for inner, _ in node.next_functions if inner is not None), None)
    return node


def _is_broadcast(node: Any) -> bool:
    """Return whether a loss takes n predictions as n times n, or what it does with a constant.

    That is a difference, or a product with n numbers.
    """
    kind = kind_of(node.name())
    inputs = node.next_functions[:MAX_INPUTS]
    if kind in (_DIFFERENCE, _PRODUCT):
        [(first, number), *others] = sorted(inputs, key=lambda one: one[0] is None)
        if first is None or [inner for inner, _ in others] != [None]:
            return False
        size = _num_results(first, number)
        if not 1 < size**2 == _num_results(node):
            return False
        return kind == _DIFFERENCE or _factor_size(node) == size
    if kind.endswith(_LOSS):
        for inner, _ in inputs:
            if inner is not None and kind_of(inner.name()) == _EXPAND:
                number = math.prod(getattr(inner, "_saved_self_sym_sizes", ()))
                if 1 < number**2 == _num_results(inner):
                    return True
    return False


def _factor_size(node: Any) -> int:
    """Return how many elements the constant has that a product keeps; 0 where it is not known."""
    for name in ("_raw_saved_self", "_raw_saved_other"):
        values = kept(getattr(node, name, None))
        if values is not None:
            return values.numel()
    return 0


def _num_results(node: Any, number: int = 0) -> int:
    """Return how many elements a result of *node* has; 0 where torch does not tell."""
    shapes = [result.shape for result in getattr(node, "_input_metadata", ())]
    return math.prod(shapes[number]) if number < len(shapes) else 0


def _number_of(node: Any) -> float | None:
    """Return the number that *node* multiplies or divides by, if it does."""
    number = kept(node._raw_saved_other) if node.name() in _FACTORS else None
    return None if number is None or not _is_number(number) else float(number)


def _operation(node: Any) -> tuple[str, list[Any]]:
    """Return the name of an operation, and those whose results it takes; None is a constant.

    What takes a parameter is a layer, and so is a parameter that is a single number: it weights
    terms of the loss, or divides logits.
    """
    inputs: list[Any] = []
    name = LAYER if node.name().endswith(LEAF) else spelled(node.name())
    if name is not LAYER:
        for inner, _ in node.next_functions[:MAX_INPUTS]:
            inner = _unshaped(inner)
            if inner is not None and inner.name().endswith(LEAF) and inner.variable.numel() > 1:
                return LAYER, []
            inputs.append(inner)
    if kind_of(node.name()) in _REDUCTIONS:
        sizes = getattr(node, "_saved_self_sym_sizes", None)
        name = name if sizes is None else f"{name}[{len(sizes)}d]"
    return name, inputs
