"""The layers in the graph of a loss, and to the inputs of which of them gradients go."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from traincheck_plugin.recorder.loss_graph import LEAF, Nodes, kind_of
from traincheck_plugin.vocabulary import ENTRY

MAX_LAYERS = 512
"""Nothing is told of a graph that has more."""

_CONVOLUTION = "Convolution"
_PRODUCTS = {"Addmm": (1, 2), "Mm": (0, 1)}
"""Products of matrices: the places of the input and of the weight among what they take."""

ARRANGING = frozenset(
    {
        *("Clone", "Expand", "Permute", "ReshapeAlias", "Squeeze", "T", "ToCopy", "Transpose"),
        *("UnsafeView", "Unsqueeze", "View"),
    }
)
"""What leaves a parameter one."""

_MAX_LENGTH = 8
"""Operations that are followed from a layer to its weight."""


def layers(nodes: Nodes, names: Mapping[int, str]) -> str:
    """Return the linear layers and convolutions in a graph.

    Args:
        nodes: of the graph.
        names: of parameters, by their ids.

    Returns:
        The names of their weights, sorted, with spaces between; `ENTRY` is before those to whose
        inputs no gradient goes. "" where there are too many.
    """
    told = set()
    for node, kind in nodes:
        places = _places(kind)
        if places is not None:
            entered, weighted = (node.next_functions[place][0] for place in places)
            name = names.get(parameter_of(weighted))
            if name is not None:
                told.add(name if entered is not None else ENTRY + name)
    return " ".join(sorted(told)) if len(told) <= MAX_LAYERS else ""


@cache
def _places(kind: str) -> tuple[int, int] | None:
    """Return where a layer has its input and its weight; None for what is no layer."""
    return (0, 1) if _CONVOLUTION in kind else _PRODUCTS.get(kind)


def parameter_of(node: Any) -> int:
    """Return the id of the parameter that a node only rearranges; 0 where there is none."""
    for _ in range(_MAX_LENGTH):
        if node is None:
            return 0
        kind = kind_of(node.name().rpartition("::")[2])
        if kind == LEAF:
            return id(node.variable)
        if kind not in ARRANGING:
            return 0
        node = node.next_functions[0][0]
    return 0
