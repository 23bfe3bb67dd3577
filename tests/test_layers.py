"""The import layers are checked by import-linter; its list of relations has to be complete."""

from __future__ import annotations

import tomllib
from pathlib import Path

from traincheck_plugin.relations import registry

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def test_every_relation_is_kept_from_importing_another():
    contracts = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    (independence,) = [c for c in contracts if c["type"] == "independence"]
    relations = {type(relation).__module__ for relation in registry.BUILT_IN}
    assert set(independence["modules"]) == relations
