"""Recognises a training program by its models and their parameters.

The names and shapes of the parameters are what stays the same when batch size, seed, optimizer or
length of the run change, and most of them stay when a bug changes the structure. Their set is kept
as a MinHash sketch (Broder 1997): the share of equal entries of two sketches estimates the Jaccard
similarity of the sets, whatever their size. Another program may have the same layers, as all that
train a BERT do, and use them differently: the programs must have a class of models in common, too.

Of the same script either is enough: a wider model has the names, and one whose layers are in a
plain list by mistake has the shapes.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Pipeline

SKETCH_SIZE = 32

SAME_PIPELINE = 0.5
"""Similarity from which two runs are taken for runs of one pipeline."""


def sketch(tokens: Iterable[str]) -> tuple[int, ...]:
    """Return the MinHash sketch of a set of texts; empty for an empty set."""
    found = sorted(set(tokens))
    if not found:
        return ()
    return tuple(
        min(xxhash.xxh32_intdigest(token.encode(), seed) for token in found)
        for seed in range(SKETCH_SIZE)
    )


def similarity(first: Pipeline, second: Pipeline) -> float:
    """Return how alike the parameters of two pipelines are, from 0 to 1.

    0 where their models have no class in common. The module that defines one does not matter: it is
    ``__main__`` in a script that is run, and something else where that is imported.
    """
    if _classes(first).isdisjoint(_classes(second)):
        return 0.0
    found = _share(first.parameters, second.parameters)
    if first.script and first.script == second.script:
        found = max(found, _share(first.names, second.names), _share(first.shapes, second.shapes))
    return found


def _share(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Return the share of equal entries of two sketches; 0 where one is missing."""
    if not first or len(first) != len(second):
        return 0.0
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def _classes(pipeline: Pipeline) -> set[str]:
    return {root.rpartition(".")[2] for root in pipeline.roots}


def pipeline_of(catalog: Catalog, script: str, window: Window | None = None) -> Pipeline:
    """Return what is recognisable about a program.

    Args:
        catalog: holds its variables.
        script: file name of its entry script.
        window: the first in which an optimizer steps: what the first step shows is told, since what
            comes later in a run is not known when a check must tell. Without, or where it shows
            nothing, all parameters are.
    """
    codes = None if window is None else _first_shown(window)
    variables = catalog.variables if codes is None else [catalog.variables[code] for code in codes]
    parameters = [v for v in variables if v.kind == "parameter"]
    shapes = ["x".join(map(str, v.shape)) for v in parameters]
    return Pipeline(
        script=script,
        roots=tuple(sorted({v.owner.partition("#")[0] for v in parameters})),
        parameters=sketch(f"{v.name}:{s}" for v, s in zip(parameters, shapes, strict=True)),
        names=sketch(v.name for v in parameters),
        shapes=sketch(
            f"{v.name.rpartition('.')[2]}:{s}" for v, s in zip(parameters, shapes, strict=True)
        ),
    )


def _first_shown(window: Window) -> list[int] | None:
    """Return the parameters that the first step of an optimizer shows; None where it shows none."""
    calls = window.calls
    steps = set(calls.call[window.rows_of_role("step")].tolist())
    for frame in window.frames:
        if frame.call in steps and window.kind(frame) == "parameter":
            return [int(code) for code in frame.variables]
    return None
