from __future__ import annotations

from dataclasses import replace

import pytest

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants import sources
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.model import APIParam, Invariant
from traincheck_plugin.invariants.sources import load_sources

RULE = Invariant(relation="R", params=(APIParam(api_full_name="f"),))
OTHER = Invariant(relation="R", params=(APIParam(api_full_name="g"),))


def test_a_rule_of_two_files_is_kept_once_with_the_graver_severity(tmp_path):
    graver = replace(RULE, severity="critical")
    dump_invariants([RULE, OTHER], tmp_path / "a.json")
    dump_invariants([graver], tmp_path / "b.json")
    assert load_sources([tmp_path / "a.json", tmp_path / "b.json"]) == (graver, OTHER)
    assert load_sources([tmp_path / "b.json", tmp_path / "a.json"]) == (graver, OTHER)


def test_default_names_the_bundled_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.resources, "files", lambda _: tmp_path)
    with pytest.raises(InvariantError, match="this version has none; infer some from a healthy"):
        load_sources(["default"])
    dump_invariants([RULE], tmp_path / "default.jsonl")
    dump_invariants([OTHER], tmp_path / "own.json")
    assert load_sources(["default", tmp_path / "own.json"]) == (RULE, OTHER)
