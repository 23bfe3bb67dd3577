"""Where invariants come from: files, and the bundled defaults under the name ``default``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from importlib import resources
from pathlib import Path

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.invariants.model import SEVERITIES, Invariant

DEFAULT = "default"


def load_sources(
    sources: Iterable[str | Path],
    known_relations: Set[str] | None = None,
    on_unsupported: Callable[[str], None] | None = None,
) -> tuple[Invariant, ...]:
    """Read several sources as one set: a rule that two of them hold is kept once.

    Args:
        sources: paths of files, or ``default`` for the bundled invariants.
        known_relations: see `load_invariants`.
        on_unsupported: see `load_invariants`.

    Raises:
        InvariantError: a source cannot be read.
    """
    rules: dict[object, Invariant] = {}
    for source in sources:
        if source == DEFAULT:
            invariants = _load_default(known_relations)
        else:
            invariants = load_invariants(source, known_relations, on_unsupported)
        for new in invariants:
            key = (new.hypothesis, new.precondition, new.scope, new.pipelines)
            old = rules.setdefault(key, new)
            if SEVERITIES.index(new.severity) > SEVERITIES.index(old.severity):
                rules[key] = new
    return tuple(rules.values())


def _load_default(known_relations: Set[str] | None) -> tuple[Invariant, ...]:
    bundled = resources.files("traincheck_plugin.invariants").joinpath("default.jsonl")
    with resources.as_file(bundled) as path:
        if not path.exists():
            raise InvariantError(
                "expected bundled invariants, but this version has none; "
                "infer some from a healthy run with traincheck-infer and give that file"
            )
        return load_invariants(path, known_relations)
