"""Ranks inside Lightning: its strategy averages the gradients only if the backward is its own."""

from __future__ import annotations

import json

import pytest

from tests.ranks.launching import ROOT, run, torchrun
from traincheck_plugin.checker.check import check
from traincheck_plugin.relations.loading import load_checkable
from traincheck_plugin.trace.reader import open_run

pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    done = run(torchrun(ROOT / "tests/ranks/lightning_manual.py", folder), folder)
    assert done.returncode == 0, done.stderr
    return folder


def live(folder, twin):
    first, second = (json.loads((folder / f"{twin}_{rank}.json").read_text()) for rank in range(2))
    assert first == second
    found, problems = first
    assert problems == []
    return found


def offline(folder, twin):
    result = check(open_run(folder / twin), load_checkable(["default"])[0])
    return [
        [violation.message, violation.step]
        for outcome in result.outcomes
        for violation in outcome.violations
        if violation.invariant.relation == "RankConsistencyRelation"
    ]


@pytest.mark.slow
def test_a_backward_pass_past_the_strategy_is_found(folder):
    expected = ["4 of 4 parameters differ between ranks after SGD.step: ranks 0, 1 disagree", 0]

    assert live(folder, "buggy") == [expected]
    assert offline(folder, "buggy") == [expected]


@pytest.mark.slow
def test_manual_backward_is_silent(folder):
    assert live(folder, "clean") == []
    assert offline(folder, "clean") == []
