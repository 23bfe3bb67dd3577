"""What the operations of a graph are set to: what they take together, and what they leave out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import accumulate, pairwise
from operator import mul
from typing import Any

from traincheck_plugin.recorder.attention import (
    ARRANGING,
    SOFTMAX,
    SOFTMAXES,
    Padded,
    attends,
    attention,
    axis_before,
    shape_of,
)
from traincheck_plugin.recorder.layers import parameter_of
from traincheck_plugin.recorder.loss_graph import LEAF, Nodes, kept, kind_of, spelled, wrapped
from traincheck_plugin.vocabulary import Setting

MAX_OPERATIONS = 4096
"""Nothing is told of a graph that has more."""

_HIDING = ("CheckpointFunction", "CompiledFunction")
"""Functions that hide operations. What they hide may be seen in another run."""

_STEPS = frozenset({"Ceil", "Floor", "Round", "Sign", "Trunc"})
"""Operations whose gradients are zeros."""

_LOSS, _GATHER, _LOG_SOFTMAX = "Loss", "Gather", "LogSoftmax"
_CLASSES = {"CtcLoss": -1, "NllLoss": -1, "NllLoss2D": 1}
"""Losses that pick classes, and along which axis."""

_SETTINGS = ("_saved_beta", "_saved_delta", "_saved_ignore_index", "_saved_reduction")
_WEIGHTS = ("_raw_saved_pos_weight", "_raw_saved_weight")
"""What two losses of the same predictions and targets may differ in."""

_MAX_LENGTH = 8
"""Operations that are followed from a loss to a log_softmax."""

_RESHAPES = frozenset({"ReshapeAlias", "UnsafeView", "View"})
_PADDING = frozenset({"Cat", "ConstantPadNd"})
_CUTTING = frozenset({"IndexSelect", "Slice"})
"""What is padded before a reshape, or cut off after it, is skewed on purpose."""
_WITHIN = frozenset({*SOFTMAXES, "Cumsum", "Logcumsumexp", _LOG_SOFTMAX})
"""Operations over a dimension that stays."""

_ACROSS = frozenset(
    {
        *("Amax", "Amin", "LinalgVectorNorm", "Logsumexp", "Max", "Mean", "Min", "Norm", "Prod"),
        *("Std", "Sum", "Var"),
    }
)
"""Operations over dimensions that may go."""


def nodes_of(last: Any) -> Nodes | None:
    """Return the operations that compute the result of *last*, with what gradients go to.

    None where functions hide operations, and where there are too many.
    """
    nodes = []
    known = {last}
    waiting = [last]
    while waiting:
        node = waiting.pop()
        name = node.name()
        if name.startswith(_HIDING):
            return None
        nodes.append((node, kind_of(name)))
        for inner, _ in node.next_functions:
            if inner is not None and inner not in known:
                if len(known) == MAX_OPERATIONS:
                    return None
                known.add(inner)
                waiting.append(inner)
    return nodes


def settings(nodes: Nodes, padded: Padded = dict) -> str:
    """Return what operations are set to.

    Args:
        nodes: of the graph of a loss.
        padded: returns the padding of the sequences that the model was given.

    Returns:
        ``operation.setting=value`` for each, sorted, with spaces between: ``nll_loss.ignored=-100
        softmax.dimension=-1``.
    """
    told: set[str] = set()
    comparisons: list[_Comparison] = []
    shifted = {node.next_functions[0][0] for node, kind in nodes if kind in _CUTTING}
    for node, kind in nodes:
        if _tells(kind) and not (kind in _RESHAPES and node in shifted):
            told.update(
                f"{what}.{setting}={value}" for what, setting, value in _of(node, kind, padded)
            )
            comparisons += _compared(node, kind)
    if len(comparisons) > 1:
        repeats = len(set(comparisons)) < len(comparisons)
        told.add(f"loss.repeated={'yes' if repeats else 'no'}")
    if any(kind.endswith(LEAF) for _, kind in nodes):
        told.add(f"loss.flat={'yes' if _is_flat(nodes) else 'no'}")
    return " ".join(sorted(told))


@cache
def _tells(kind: str) -> bool:
    told = (_WITHIN, _ACROSS, _RESHAPES)
    is_of_loss = _LOSS in kind or kind == _GATHER
    return is_of_loss or any(kind in kinds for kinds in told) or attends(kind)


def _of(node: Any, kind: str, padded: Padded) -> Iterator[tuple[str, Setting, object]]:
    """Yield what an operation is called on all devices, a setting, and its value."""
    if attends(kind):
        yield from attention(node, kind, padded)
    elif kind in _RESHAPES:
        mixes = _mixes(node)
        if mixes is not None:
            yield "reshape", "mixes", "yes" if mixes else "no"
    elif kind == _GATHER:
        yield from _picked(node, wrapped(node._saved_dim))
    elif _LOSS in kind:
        if kind in _CLASSES:
            yield from _picked(node, _CLASSES[kind])
        # Not whether it takes the mean: a sum that is divided is one, too.
        if hasattr(node, "_saved_ignore_index"):
            yield spelled(kind), "ignored", wrapped(node._saved_ignore_index)
        lengths = getattr(node, "_saved_input_lengths", None)
        if isinstance(lengths, tuple) and len(lengths) > 1:
            # Lengths hide padding as a mask does.
            yield spelled(kind), "masked", "yes" if len(set(lengths)) > 1 else "no"
    else:
        dimensions = _dimensions(node, kind in _WITHIN)
        if dimensions:
            yield spelled(SOFTMAX if kind in SOFTMAXES else kind), "dimension", dimensions


def _picked(node: Any, axis: int) -> Iterator[tuple[str, Setting, str]]:
    """Yield whether *node* picks classes along the axis over which their log_softmax goes.

    Args:
        node: a loss, or what picks by an index.
        axis: of what it is given, along which it does.
    """
    inner = node.next_functions[0][0]
    number = 0 if inner is None else len(shape_of(inner))
    found: int | None = axis % number if number else None
    for _ in range(_MAX_LENGTH):
        if inner is None or found is None:
            return
        kind = kind_of(inner.name())
        if kind == _LOG_SOFTMAX:
            along = wrapped(inner._saved_dim) % len(shape_of(inner))
            yield "log_softmax", "picked", "yes" if along == found else "no"
            return
        if kind not in ARRANGING:
            return
        following = inner.next_functions[0][0]
        found = axis_before(inner, kind, found, following)
        inner = following


def _is_flat(nodes: Nodes) -> bool:
    """Return whether all gradients of a loss are zeros: what has a step in its graph is rounded."""
    kinds = dict(nodes)
    if _STEPS.isdisjoint(kinds.values()):
        return False
    waiting = [nodes[0][0]]
    known = set(waiting)
    while waiting:
        node = waiting.pop()
        if kinds[node].endswith(LEAF):
            return False
        if kinds[node] in _STEPS:
            continue
        for inner, _ in node.next_functions:
            if inner is not None and inner not in known:
                known.add(inner)
                waiting.append(inner)
    return True


_Comparison = tuple[object, ...]
"""A loss, what it is given, and how it is set."""


def _compared(node: Any, kind: str) -> Iterator[_Comparison]:
    """Yield what a loss compares and how, as far as its graph keeps it."""
    target = kept(getattr(node, "_raw_saved_target", None)) if _LOSS in kind else None
    if target is None:
        return
    inner, number = node.next_functions[0]
    if inner is not None and kind_of(inner.name()) == _LOG_SOFTMAX:
        inner, number = inner.next_functions[0]
    weights = (kept(getattr(node, name, None)) for name in _WEIGHTS)
    yield (
        *(kind, inner, number, target.data_ptr(), tuple(target.shape)),
        *(getattr(node, name, None) for name in _SETTINGS),
        *(None if weight is None else weight.data_ptr() for weight in weights),
    )


def _dimensions(node: Any, is_within: bool) -> str:
    """Return what *node* goes over, counted from the last dimension: ``-2,-1``; "" for all."""
    given = getattr(node, "_saved_dim", None)
    if given is None or not hasattr(node, "_input_metadata"):
        return ""
    dimensions = [wrapped(one) for one in (given if isinstance(given, tuple) else (given,))]
    number = len(shape_of(node))
    if not is_within and not getattr(node, "_saved_keepdim", False):
        number += len(dimensions)
    return ",".join(map(str, sorted(one - number if one >= 0 else one for one in dimensions)))


def _mixes(node: Any) -> bool | None:
    """Return whether a reshape does more than to split and to merge axes.

    ``(2, 3) -> (3, 2)`` takes what belongs to one row for another, as where axes should have been
    exchanged. What is padded is skewed on purpose, for relative positions, and a parameter has the
    axes that it is given: None for them, and where torch does not tell.
    """
    before, after = getattr(node, "_saved_self_sym_sizes", None), shape_of(node)
    if before is None or not all(type(size) is int and size > 0 for size in (*before, *after)):
        return None
    if not _do_mix(before, after):
        return False
    inner = node.next_functions[0][0]
    is_meant = inner is None or kind_of(inner.name()) in _PADDING or parameter_of(inner) != 0
    return None if is_meant else True


@lru_cache(maxsize=1024)
def _do_mix(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    strides = sorted({*_strides(before), *_strides(after)})
    return any(larger % smaller for smaller, larger in pairwise(strides))


def _strides(shape: tuple[int, ...]) -> Iterator[int]:
    """Yield how many elements the last axes have together, from the last to all."""
    return accumulate(reversed(shape), mul)
