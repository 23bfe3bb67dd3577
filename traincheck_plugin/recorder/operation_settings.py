"""What the operations of a graph are set to: what they take together, and what they leave out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from traincheck_plugin.recorder.loss_graph import Nodes, is_given, kept, kind_of, spelled, wrapped
from traincheck_plugin.vocabulary import Setting

MAX_OPERATIONS = 4096
"""Nothing is told of a graph that has more."""

_HIDING = ("CheckpointFunction", "CompiledFunction")
"""Functions that hide operations. What they hide may be seen in another run."""

_SOFTMAX = "Softmax"
_SOFTMAXES = frozenset({"SafeSoftmax", _SOFTMAX})
_LOSS = "Loss"
_WITHIN = frozenset({*_SOFTMAXES, "Cumsum", "Logcumsumexp", "LogSoftmax"})
"""Operations over a dimension that stays."""

_ACROSS = frozenset(
    {
        *("Amax", "Amin", "LinalgVectorNorm", "Logsumexp", "Max", "Mean", "Min", "Norm", "Prod"),
        *("Std", "Sum", "Var"),
    }
)
"""Operations over dimensions that may go."""

_FUSED = "ScaledDotProduct"
_MASKS = ("_raw_saved_attn_mask", "_raw_saved_attn_bias")
_PRODUCTS = frozenset({"Bmm", "Mm"})
_MAX_LENGTH = 8
"""Operations that are followed from a product to a softmax, and from there to a mask."""

_ARRANGING = frozenset(
    {
        *("Clone", "Expand", "NativeDropout", "Permute", "ReshapeAlias", "Squeeze", "ToCopy"),
        *("Transpose", "UnsafeView", "Unsqueeze", "View"),
    }
)
_SCALING = frozenset({"Div", "Mul"})
"""What may come between a softmax and the product with values, and between it and a mask."""

_FILLING = frozenset({"IndexPut", "MaskedFill", "Where"})
_ADDING = frozenset({"Add", "Baddbmm"})


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


def settings(nodes: Nodes) -> str:
    """Return what operations are set to.

    Returns:
        ``operation.setting=value`` for each, sorted, with spaces between: ``nll_loss.ignored=-100
        softmax.dimension=-1``.
    """
    told: set[str] = set()
    for node, kind in nodes:
        if _tells(kind):
            told.update(f"{what}.{setting}={value}" for what, setting, value in _of(node, kind))
    return " ".join(sorted(told))


@cache
def _tells(kind: str) -> bool:
    tells = kind in _WITHIN or kind in _ACROSS or kind in _PRODUCTS
    return tells or _LOSS in kind or kind.startswith(_FUSED)


def _of(node: Any, kind: str) -> Iterator[tuple[str, Setting, object]]:
    """Yield what an operation is called on all devices, a setting, and its value."""
    if kind in _PRODUCTS:
        softmax = _softmax_of(node)
        if softmax is not None:
            shape = _shape(softmax)
            yield from _attention(_is_masked(softmax.next_functions[0][0]), shape, *shape[-2:])
    elif kind.startswith(_FUSED):
        is_masked = getattr(node, "_saved_is_causal", False) or any(
            is_given(getattr(node, name, None)) for name in _MASKS
        )
        keys = kept(getattr(node, "_raw_saved_key", None))
        num_keys = () if keys is None else keys.shape[-2:-1]
        yield from _attention(is_masked, _shape(node), *_shape(node)[-2:-1], *num_keys)
    elif _LOSS in kind:
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
            yield spelled(_SOFTMAX if kind in _SOFTMAXES else kind), "dimension", dimensions


def _attention(
    is_masked: bool, shape: tuple[int, ...], *lengths: int
) -> Iterator[tuple[str, Setting, str]]:
    """Yield what is told of an attention of that shape, of so many queries and so many keys."""
    if not is_masked and len(shape) == 4 and shape[0] == 1:
        # A single sample is not padded, so that its mask may be left out.
        return
    told = "yes" if is_masked else "no"
    yield "attention", "masked", told
    if len(lengths) == 2 and 1 < lengths[0] == lengths[1]:
        # Each position may see each of the same sequence.
        yield "self_attention", "masked", told


def _shape(node: Any) -> tuple[int, ...]:
    """Return the shape of the first result of a node; () where torch does not tell."""
    return next((tuple(result.shape) for result in getattr(node, "_input_metadata", ())), ())


def _softmax_of(product: Any) -> Any:
    """Return the softmax by whose result values are multiplied; None where that is none."""
    for inner, _ in product.next_functions:
        for _ in range(_MAX_LENGTH):
            kind = "" if inner is None else kind_of(inner.name())
            if kind in _SOFTMAXES:
                return inner
            if kind not in _ARRANGING and kind not in _SCALING:
                break
            inner = next((one for one, _ in inner.next_functions if one is not None), None)
    return None


def _dimensions(node: Any, is_within: bool) -> str:
    """Return what *node* goes over, counted from the last dimension: ``-2,-1``; "" for all."""
    given = getattr(node, "_saved_dim", None)
    if given is None or not hasattr(node, "_input_metadata"):
        return ""
    dimensions = [wrapped(one) for one in (given if isinstance(given, tuple) else (given,))]
    number = len(_shape(node))
    if not is_within and not getattr(node, "_saved_keepdim", False):
        number += len(dimensions)
    return ",".join(map(str, sorted(one - number if one >= 0 else one for one in dimensions)))


def _is_masked(node: Any) -> bool:
    """Return whether something without a gradient was added to the result of *node*, or put in."""
    waiting = [node]
    for _ in range(_MAX_LENGTH):
        node = waiting.pop() if waiting else None
        if node is None:
            return False
        kind = kind_of(node.name())
        inputs = [inner for inner, _ in node.next_functions]
        if kind in _FILLING or (kind in _ADDING and None in inputs):
            return True
        if kind in _ADDING or kind in _ARRANGING or kind in _SCALING:
            waiting += [inner for inner in inputs if inner is not None]
    return False
