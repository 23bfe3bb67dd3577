"""Recognises a training program by its parameters.

The names and shapes of the parameters are what stays the same when batch size, seed, optimizer or
length of the run change, and most of them stay when a bug changes the structure. Their set is kept
as a MinHash sketch (Broder 1997): the share of equal entries of two sketches estimates the Jaccard
similarity of the sets, whatever their size.
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
    """Return how alike the parameters of two pipelines are, from 0 to 1."""
    if not first.parameters or len(first.parameters) != len(second.parameters):
        return 0.0
    equal = sum(a == b for a, b in zip(first.parameters, second.parameters, strict=True))
    return equal / len(first.parameters)


def pipeline_of(catalog: Catalog, script: str) -> Pipeline:
    """Return what is recognisable about the program whose variables *catalog* holds."""
    parameters = [v for v in catalog.variables if v.kind == "parameter"]
    return Pipeline(
        script=script,
        roots=tuple(sorted({v.owner.partition("#")[0] for v in parameters})),
        parameters=sketch(f"{v.name}:{'x'.join(map(str, v.shape))}" for v in parameters),
    )
