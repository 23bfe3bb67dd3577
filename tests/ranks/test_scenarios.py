"""Bugs of several ranks are found, live and in the trace, where they begin; their twins are not."""

from __future__ import annotations

import json

import pytest

from tests.ranks import scenarios
from tests.ranks.launching import ROOT, run, torchrun
from traincheck_plugin.checker.check import check
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import dump_invariants
from traincheck_plugin.invariants.sources import load_sources
from traincheck_plugin.trace.reader import open_run

pytestmark = pytest.mark.slow

SCENARIOS = list(scenarios.SCENARIOS)
ALL = {"inner.weight", "inner.bias", "norm.weight", "norm.bias", "outer.weight", "outer.bias"}
REPLICATED = "replicated parameters are equal on all ranks after each step"

EXPECTED = {
    "raw_module_called": (0, ALL),
    "forward_through_module": (scenarios.BROKEN, ALL),
    "no_sync_around_every_step": (0, ALL),
    "one_rank_skips_a_step": (scenarios.BROKEN, ALL),
    "unfrozen_after_wrapping": (0, {"inner.weight", "inner.bias"}),
    "different_initial_weights": (0, ALL - {"norm.weight", "norm.bias"}),
    "buffers_diverge": (0, {"mean"}),
    "cast_and_cast_back": (scenarios.BROKEN, ALL),
    "clipping_on_one_rank": (scenarios.BROKEN, {"norm.weight", "norm.bias"}),
    "untied_on_one_rank": (scenarios.BROKEN, {"second.weight"}),
}
"""Of each bug that makes replicas drift: the step at which it begins, and the variables."""

WITHOUT_WRAPPER = {"different_initial_weights", "buffers_diverge"}
"""Only a reference tells that these are meant to be equal."""


def launch(folder, twins):
    script = ROOT / "tests/ranks/scenarios.py"
    done = run(torchrun(script, folder, twins, *SCENARIOS), folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the reference was recorded, rules learned, and both twins run with them."""
    folder = tmp_path_factory.mktemp("scenarios")
    launch(folder, "clean")
    for name in SCENARIOS:
        clean = folder / f"{name}-clean"
        rules = infer([open_run(clean / "trace")]).invariants
        dump_invariants(rules, folder / f"{name}.json")
        clean.rename(folder / f"{name}-reference")
    launch(folder, "clean,buggy")
    return folder


def found_live(folder, name, twin):
    """Return what the ranks found, which is the same on all of them if it is about all of them."""
    found = [
        json.loads((folder / f"{name}-{twin}/found_{rank}.json").read_text()) for rank in range(2)
    ]
    assert [one["problems"] for one in found] == [[], []]
    across = [
        [v for v in one["violations"] if v["relation"] == "RankConsistencyRelation"]
        for one in found
    ]
    assert across[0] == across[1]
    return [violation for one in found for violation in one["violations"]]


def found_offline(folder, name, twin):
    rules = infer([open_run(folder / f"{name}-reference/trace")]).invariants
    result = check(open_run(folder / f"{name}-{twin}/trace"), rules)
    assert result.problems == ()
    return [violation for outcome in result.outcomes for violation in outcome.violations]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_clean_twin_is_silent(folder, name):
    assert found_live(folder, name, "clean") == []
    assert found_offline(folder, name, "clean") == []


@pytest.mark.parametrize("name", EXPECTED)
def test_drifting_replicas_are_found_live(folder, name):
    step, names = EXPECTED[name]
    found = [
        violation
        for violation in found_live(folder, name, "buggy")
        if violation["relation"] == "RankConsistencyRelation"
    ]

    assert {violation["step"] for violation in found} == {step}
    assert set().union(*(violation["subjects"] for violation in found)) == names
    assert all("ranks 0, 1 disagree" in violation["message"] for violation in found)
    assert (REPLICATED in {v["rule"] for v in found}) == (name not in WITHOUT_WRAPPER)


@pytest.mark.parametrize("name", EXPECTED)
def test_drifting_replicas_are_found_in_the_trace(folder, name):
    step, names = EXPECTED[name]
    found = [
        violation
        for violation in found_offline(folder, name, "buggy")
        if violation.invariant.relation == "RankConsistencyRelation"
    ]

    assert {violation.step for violation in found} == {step}
    assert set().union(*(violation.cause.subjects for violation in found)) == names


SAME_GRADIENTS = "parameters are equal on all ranks where all gradients are"


def test_averaged_gradients_of_different_replicas_are_found_without_a_reference(folder):
    name = "different_initial_weights"
    assert SAME_GRADIENTS in {v["rule"] for v in found_live(folder, name, "buggy")}
    for twin in ("clean", "buggy"):
        bundled = check(open_run(folder / f"{name}-{twin}/trace"), load_sources(["default"]))
        found = [v for outcome in bundled.outcomes for v in outcome.violations]
        rules = {v.invariant.text_description for v in found if v.severity == "critical"}
        assert rules == ({SAME_GRADIENTS} if twin == "buggy" else set())


def test_an_optimizer_from_before_sharding_is_found(folder):
    name = "optimizer_from_before_sharding"
    live = [v for v in found_live(folder, name, "buggy") if v["severity"] == "critical"]
    offline = [v for v in found_offline(folder, name, "buggy") if v.severity == "critical"]

    assert live
    assert {v["message"] for v in live} == {v.message for v in offline}
    assert any("SGD.step updated 0 of" in v["message"] for v in live)


REPEATED = {
    "same_data_on_every_rank": ("RankDistinctArgumentRelation", 1, "see the same data"),
    "same_dropout_seed": ("RankDistinctArgumentRelation", 1, "were seeded alike"),
    "sampler_without_set_epoch": ("DistinctArgumentRelation", 6, "set_epoch was not called"),
}
"""Of each bug that makes ranks or epochs see the same: what finds it, from which step, and why."""


@pytest.mark.parametrize("name", REPEATED)
def test_what_is_the_same_and_should_not_be_is_found(folder, name):
    relation, step, cause = REPEATED[name]
    live = [v for v in found_live(folder, name, "buggy") if v["relation"] == relation]
    offline = [
        violation
        for violation in found_offline(folder, name, "buggy")
        if violation.invariant.relation == relation
    ]

    assert live
    assert {v["step"] for v in live} == {v.step for v in offline} == {step}
    assert all(cause in v.cause.text for v in offline)
    assert {v["message"] for v in live} == {v.message for v in offline}
