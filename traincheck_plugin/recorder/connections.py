"""From which parts of a model the others are given what they take, and how it is arranged."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from traincheck_plugin.recorder.layers import ARRANGING
from traincheck_plugin.recorder.loss_graph import LEAF, Nodes, spelled, wrapped
from traincheck_plugin.vocabulary import BY, FROM, MORE

MAX_PARTS = 512
"""Nothing is told of a graph that has more."""

MAX_SOURCES = 8
"""Of one operation, those next to it: a residual stream leads to all that are before."""

MAX_WAY = 512
"""Operations that are looked at on the ways to one."""

_MAX_USES = 2
"""Of a part that runs more often, as a recurrent one does, the first uses are looked at."""

_REORDERING = frozenset({"Flip", "Permute", "Roll"})
_PICKING = frozenset({"Gather", "IndexSelect"})

Inputs = dict[Any, list[Any]]
"""Of each operation those whose results it takes."""


def connections(nodes: Nodes, names: Mapping[int, str]) -> str:
    """Return from where the parts of a model, and the loss, are given what they take.

    Args:
        nodes: of the graph, that of the loss first.
        names: of parameters, by their ids.

    Returns:
        ``part<source:operation:operation`` for each part that takes parameters, and for each of the
        next before it from which something gets to its input, sorted, with spaces between. Parts
        are modules, and parameters that have none; the loss is ``""``. Operations are those of a
        shortest way; what puts values elsewhere has parentheses, with its axes:
        ``permute(0,2,3,1)``, ``index()``. Where there are more sources than those that are told,
        ``part<*`` is there besides; "" where there are too many parts.
    """
    inputs = {
        node: [inner for inner, _ in node.next_functions if inner is not None] for node, _ in nodes
    }
    kinds = dict(nodes)
    owners = _owners(nodes, kinds, inputs, names)
    if len(set(owners.values())) > MAX_PARTS:
        return ""
    parts = {
        node: part
        for node, several in inputs.items()
        if node not in owners
        if (part := next((owners[inner] for inner in several if inner in owners), None)) is not None
    }
    told: set[str] = set()
    uses: dict[str, int] = {}
    for node, part in {nodes[0][0]: "", **parts}.items():
        uses[part] = uses.get(part, 0) + 1
        if uses[part] <= _MAX_USES:
            given = [inner for inner in inputs[node] if inner not in owners]
            entries = given if part else [node]
            told.update(f"{part}{FROM}{one}" for one in _sources(entries, kinds, inputs, parts))
    return " ".join(sorted(told))


def _owners(
    nodes: Nodes, kinds: Mapping[Any, str], inputs: Inputs, names: Mapping[int, str]
) -> dict[Any, str]:
    """Return the parts of what is a parameter, or one that is only arranged anew."""
    found = {}
    for node, kind in nodes:
        name = names.get(id(node.variable)) if kind.endswith(LEAF) else None
        if name is not None:
            module, _, last = name.rpartition(".")
            found[node] = module or last
    for node, kind in nodes:
        way = []
        while kind in ARRANGING and node not in found and inputs[node]:
            way.append(node)
            node = inputs[node][0]
            kind = kinds[node]
        if node in found:
            found.update(dict.fromkeys(way, found[node]))
    return found


def _sources(
    entries: list[Any], kinds: Mapping[Any, str], inputs: Inputs, parts: Mapping[Any, str]
) -> list[str]:
    """Return the nearest parts that lead to some operations, each with those on the way.

    `MORE` is the last where there may be others.
    """
    found: dict[str, None] = {}
    known = set(entries)
    waiting = deque((entry, "") for entry in entries)
    while waiting:
        if len(found) == MAX_SOURCES or len(known) >= MAX_WAY:
            found[MORE] = None
            break
        node, way = waiting.popleft()
        if node in parts:
            found[parts[node] + way] = None
            continue
        way = _told(node, kinds[node]) + way
        for inner in inputs[node]:
            if inner not in known:
                known.add(inner)
                waiting.append((inner, way))
    return list(found)


def _told(node: Any, kind: str) -> str:
    """Return an operation of a way, after `BY`; "" for what leaves all values where they are."""
    axes: tuple[int, ...]
    if kind in _REORDERING:
        axes = tuple(node._saved_dims)
    elif kind == "Transpose":
        axes = (node._saved_dim0, node._saved_dim1)
    elif kind == "T":
        axes = (1, 0)
    elif kind in _PICKING:
        axes = (node._saved_dim,)
    elif kind == "Index":
        axes = ()
    else:
        return "" if kind in ARRANGING else BY + spelled(kind)
    results = getattr(node, "_input_metadata", ())
    number = len(results[0].shape) if results else 0
    axes = tuple(axis if axis >= 0 else axis + number for axis in map(wrapped, axes))
    name = spelled(kind)
    if kind in ("Transpose", "T"):
        name, axes = "transpose", tuple(sorted(axes))
    return f"{BY}{name}({','.join(map(str, axes))})"
