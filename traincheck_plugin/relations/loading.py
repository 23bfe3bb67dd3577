"""Loads the invariants that this version can check."""

from __future__ import annotations

from collections.abc import Sequence

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.invariants.sources import load_sources
from traincheck_plugin.relations.registry import relations


def load_checkable(sources: Sequence[str]) -> tuple[tuple[Invariant, ...], tuple[str, ...]]:
    """Return the invariants of some files, and what has to be said about those left out.

    Args:
        sources: paths of files, or ``default`` for the bundled invariants.

    Raises:
        InvariantError: a source cannot be read, or holds nothing that can be checked.
    """
    known = relations()
    left_out: list[str] = []
    invariants = []
    for invariant in load_sources(sources, known.keys(), left_out.append):
        try:
            known[invariant.relation].monitor(invariant.params)
        except InvariantError as error:
            left_out.append(str(error))
        else:
            invariants.append(invariant)
    said = ""
    if left_out:
        number = len(left_out)
        said = f"{number} invariant{'s were' if number > 1 else ' was'} left out: {left_out[0]}"
    if sources and not invariants and not left_out:
        raise InvariantError(
            f"expected invariants in {', '.join(sources)}, got none; "
            "give a file made by traincheck-infer"
        )
    return tuple(invariants), (said,) if said else ()
