"""Recognises a training program by its models and their parameters.

The names and shapes of the parameters are what stays the same when batch size, seed, optimizer or
length of the run change, and most of them stay when a bug changes the structure. Their set is kept
as a MinHash sketch (Broder 1997): the share of equal entries of two sketches estimates the Jaccard
similarity of the sets, whatever their size. Another program may have the same layers, as all that
train a BERT do, and use them differently: the programs must have a class of models in common, too.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

from traincheck_plugin.events import Catalog
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
    if not first.parameters or len(first.parameters) != len(second.parameters):
        return 0.0
    equal = sum(a == b for a, b in zip(first.parameters, second.parameters, strict=True))
    return equal / len(first.parameters)


def _classes(pipeline: Pipeline) -> set[str]:
    return {root.rpartition(".")[2] for root in pipeline.roots}


def pipeline_of(catalog: Catalog, script: str) -> Pipeline:
    """Return what is recognisable about the program whose variables *catalog* holds."""
    parameters = [v for v in catalog.variables if v.kind == "parameter"]
    return Pipeline(
        script=script,
        roots=tuple(sorted({v.owner.partition("#")[0] for v in parameters})),
        parameters=sketch(f"{v.name}:{'x'.join(map(str, v.shape))}" for v in parameters),
    )
