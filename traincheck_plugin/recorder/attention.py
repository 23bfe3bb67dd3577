"""Attention in an autograd graph: what its masks hide, and along which axis it is normalised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from traincheck_plugin.recorder import layers
from traincheck_plugin.recorder.loss_graph import is_given, kept, kind_of, wrapped
from traincheck_plugin.recorder.padding import Padding
from traincheck_plugin.vocabulary import Setting

Tensor = torch.Tensor

SOFTMAX = "Softmax"
SOFTMAXES = frozenset({"SafeSoftmax", SOFTMAX})

_FUSED = "ScaledDotProduct"
_MASKS = ("_raw_saved_attn_mask", "_raw_saved_attn_bias")
_PRODUCTS = {"Baddbmm": 1, "Bmm": 0, "Mm": 0}
"""With the place of their first factor."""

_MAX_LENGTH = 8
"""Operations that are followed from a product to a softmax, and from there to a mask."""

ARRANGING = layers.ARRANGING | {"NativeDropout"}
_SCALING = frozenset({"Div", "Mul"})
"""What may come between a softmax and the product with values, and between it and a mask."""

_FILLING = frozenset({"IndexPut", "MaskedFill", "Where"})

_ADDING = frozenset({"Add", "Baddbmm"})

_HIDDEN = -1e4
"""What is added to hide something is at most that, in half precision, too."""

_MAX_SIDE = 64
_MAX_MASKS = 16
"""Of a mask so many rows and columns are looked at, of so many samples and heads."""

Padded = Callable[[], Mapping[int, Padding]]
"""Returns the padding of sequences by their length."""

_UNKNOWN, _KEYS, _LATER, _EARLIER, _SOME = "unknown", "keys", "later", "earlier", "some"
_FIRST = (_LATER, _SOME, _UNKNOWN, _EARLIER, _KEYS)
"""What several masks hide together: the first of what they are told to."""


def attends(kind: str) -> bool:
    """Return whether an operation may be the last of an attention."""
    return kind in _PRODUCTS or kind.startswith(_FUSED)


def attention(node: Any, kind: str, padded: Padded) -> Iterator[tuple[str, Setting, str]]:
    """Yield what is told of the attention whose last operation is *node*, if it is one.

    ``masked`` is whether something hides elements from it. Of self-attention, in which each
    position may see each of the same sequence, ``hides`` tells what is hidden from a position where
    there is a mask: what comes ``later``, or ``earlier``, ``some`` otherwise, or the same ``keys``
    from all; ``unknown`` where the graph does not keep the mask, or a device has it. ``side`` tells
    whether the ``first`` key of a sample is hidden from all queries and its last is not, or the
    ``last`` and not its first. ``padding`` is ``hidden`` where the end at which sequences of as
    many keys are padded is hidden of each that is, and ``shown`` where it is not, and the other one
    is. ``summed`` tells whether values are summed up along the dimension along which their weights
    add up to one.

    Args:
        node: of the graph.
        kind: of operation.
        padded: returns the padding of the sequences that the model was given.
    """
    if kind.startswith(_FUSED):
        yield from _fused(node, padded)
        return
    found = _softmax_of(node, _PRODUCTS[kind])
    if found is None:
        return
    softmax, axis = found
    shape = shape_of(softmax)
    inner = softmax.next_functions[0][0]
    is_masked = _is_masked(inner)
    weights = kept(getattr(softmax, "_raw_saved_result", None)) if is_masked else None
    hides = _hides(weights, _is_zero)
    yield from _masked([hides] * is_masked, shape, *shape[-2:])
    yield from _sides(weights, _is_zero, padded)
    if axis is not None and _is_of_products(inner):
        along = wrapped(softmax._saved_dim) % len(shape)
        yield "attention", "summed", "yes" if axis == along else "no"


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of the first result of a node; () where torch does not tell."""
    return next((tuple(result.shape) for result in getattr(node, "_input_metadata", ())), ())


def _fused(node: Any, padded: Padded) -> Iterator[tuple[str, Setting, str]]:
    masks = [_LATER] if getattr(node, "_saved_is_causal", False) else []
    for name in _MASKS:
        mask = getattr(node, name, None)
        if is_given(mask):
            masks.append(_hides(kept(mask), _is_hidden))
            yield from _sides(kept(mask), _is_hidden, padded)
    keys = kept(getattr(node, "_raw_saved_key", None))
    num_keys = () if keys is None else keys.shape[-2:-1]
    yield from _masked(masks, shape_of(node), *shape_of(node)[-2:-1], *num_keys)


def _masked(
    masks: list[str], shape: tuple[int, ...], *lengths: int
) -> Iterator[tuple[str, Setting, str]]:
    """Yield what is told of an attention of that shape, of so many queries and so many keys."""
    if not masks and len(shape) == 4 and shape[0] == 1:
        # A single sample is not padded, so that its mask may be left out.
        return
    told = "yes" if masks else "no"
    yield "attention", "masked", told
    if len(lengths) == 2 and 1 < lengths[0] == lengths[1]:
        yield "self_attention", "masked", told
        if masks:
            yield "self_attention", "hides", next(one for one in _FIRST if one in masks)


def _softmax_of(product: Any, first: int) -> tuple[Any, int | None] | None:
    """Return the softmax by whose result values are multiplied; None where that is none.

    Returns:
        It, and the axis of its result along which the values are summed up; None where that is
        lost on the way.
    """
    for place, contracted in ((first, -1), (first + 1, -2)):
        if place >= len(product.next_functions):
            break
        inner = product.next_functions[place][0]
        axis = None if inner is None else len(shape_of(inner)) + contracted
        for _ in range(_MAX_LENGTH):
            kind = "" if inner is None else kind_of(inner.name())
            if kind in SOFTMAXES:
                return inner, axis
            if kind not in ARRANGING and kind not in _SCALING:
                break
            following = next((one for one, _ in inner.next_functions if one is not None), None)
            if kind in _SCALING and None not in [one for one, _ in inner.next_functions]:
                # What is divided by its own sum adds up to one along another dimension.
                axis = None
            if axis is not None:
                axis = axis_before(inner, kind, axis, following)
            inner = following
    return None


def axis_before(node: Any, kind: str, axis: int, given: Any) -> int | None:
    """Return which axis of what *node* is given is that *axis* of its result; None if none is."""
    shape = shape_of(node)
    number = len(shape)
    if kind == "Transpose":
        swapped = [wrapped(getattr(node, name)) % number for name in ("_saved_dim0", "_saved_dim1")]
        return swapped[1 - swapped.index(axis)] if axis in swapped else axis
    if kind == "T":
        return 1 - axis
    if kind == "Permute":
        return wrapped(node._saved_dims[axis]) % number
    before = shape_of(given) if given is not None else ()
    if kind in _SCALING or kind in ("Clone", "Expand", "NativeDropout", "ToCopy"):
        before_axis = axis - number + len(before)
        return before_axis if before_axis >= 0 else None
    # What is left of a shape that is arranged anew: the axis of that size with as much behind it.
    behind = math.prod(shape[axis + 1 :])
    for place in range(len(before)):
        if before[place] == shape[axis] > 1 and math.prod(before[place + 1 :]) == behind:
            return place
    return None


def _is_of_products(node: Any) -> bool:
    """Return whether *node* computes, with masks and scales, products of what has gradients."""
    for _ in range(_MAX_LENGTH):
        if node is None:
            return False
        kind = kind_of(node.name())
        inputs = [inner for inner, _ in node.next_functions]
        if kind in _PRODUCTS:
            # A layer gives scores, too, as of clusters among which samples are distributed.
            factors = inputs[_PRODUCTS[kind] :]
            return len(factors) == 2 and not any(map(_is_constant, factors))
        if kind not in ARRANGING | _SCALING | _ADDING | _FILLING:
            return False
        node = next((inner for inner in inputs if inner is not None), None)
    return False


def _is_constant(node: Any) -> bool:
    """Return whether *node* gives what is no result of others: a weight, or without a gradient."""
    return node is None or layers.parameter_of(node) != 0


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
        if kind in _ADDING or kind in ARRANGING or kind in _SCALING:
            waiting += [inner for inner in inputs if inner is not None]
    return False


def _is_zero(weights: Tensor) -> Tensor:
    return weights == 0


def _is_hidden(mask: Tensor) -> Tensor:
    return ~mask if mask.dtype == torch.bool else mask <= _HIDDEN


def _hides(told: Tensor | None, is_hidden: Callable[[Tensor], Tensor]) -> str:
    """Return what is hidden from a position of a sequence.

    Args:
        told: weights of an attention, or its mask, with a row for each query; None where it is not
            known.
        is_hidden: tells what is hidden.
    """
    if told is None or not _is_readable(told):
        return _UNKNOWN
    if told.shape[-2] == 1:
        return _KEYS
    if told.shape[-1] != told.shape[-2]:
        return _UNKNOWN
    stride = -(-told.shape[-1] // _MAX_SIDE)
    hidden = is_hidden(_some(told)[:, ::stride, ::stride]).all(0)
    if bool((hidden == hidden[:1]).all()):
        return _KEYS
    above = torch.ones_like(hidden).triu(1)
    if bool(hidden[above].all()):
        return _LATER
    return _EARLIER if bool(hidden[above.T].all()) else _SOME


def _sides(
    told: Tensor | None, is_hidden: Callable[[Tensor], Tensor], padded: Padded
) -> Iterator[tuple[str, Setting, str]]:
    """Yield at which end keys of some sample are hidden from all queries, and not at the other."""
    if told is None or not _is_readable(told):
        return
    several = _some(told)
    first, last = (is_hidden(several[..., key]).all(-1) for key in (0, -1))
    sides = {"first": first & ~last, "last": last & ~first}
    for side, hidden in sides.items():
        if bool(hidden.any()):
            yield "attention", "side", side
    padding = padded().get(told.shape[-1]) if bool((first ^ last).any()) else None
    number = math.prod(told.shape[:-2])
    if padding is None or number % len(padding.is_padded):
        return
    is_padded = _few(padding.is_padded.repeat_interleave(number // len(padding.is_padded)))
    if not bool(is_padded.any()):
        return
    at_end, other = (last, first) if padding.end == "last" else (first, last)
    if bool(at_end[is_padded].all()):
        yield "attention", "padding", "hidden"
    elif bool((other & ~at_end)[is_padded].all()):
        yield "attention", "padding", "shown"


def _is_readable(told: Tensor) -> bool:
    """Return whether a mask can be looked at: on a device that would wait for it."""
    return told.is_cpu and told.dim() >= 2 and told.numel() > 0


def _some(told: Tensor) -> Tensor:
    """Return the masks of some samples and heads, one after the other."""
    several = told.detach().flatten(0, -3) if told.dim() > 2 else told.detach()[None]
    return _few(several)


def _few(several: Tensor) -> Tensor:
    return several[:: -(-len(several) // _MAX_MASKS)]
