"""Where replicas are split over ranks, each is compared with its own likes, live and offline."""

from __future__ import annotations

import json

import pytest

from tests.ranks.launching import ROOT, run, torchrun
from traincheck_plugin.checker.check import check
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.trace.reader import open_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    done = run(torchrun(ROOT / "tests/ranks/layouts.py", folder, num_processes=4), folder)
    assert done.returncode == 0, done.stderr
    return folder


def live(folder, twin):
    found = [json.loads((folder / f"{twin}_{rank}.json").read_text()) for rank in range(4)]
    assert [one["problems"] for one in found] == [[]] * 4
    return [one["violations"] for one in found]


def offline(folder, twin):
    result = check(open_run(folder / twin), load_invariants(folder / "rules.json"))
    assert result.problems == ()
    return [[v.message, v.step] for outcome in result.outcomes for v in outcome.violations]


def test_contexts_tell_where_each_rank_stands(folder):
    for trace in open_run(folder / "clean").ranks:
        [*_, window] = trace.windows()
        last = window.catalog.contexts[len(window.catalog.contexts) - 1]
        place = last.data_parallel, last.tensor_parallel, last.pipeline_parallel
        assert place == (trace.rank // 2, trace.rank % 2, 0)


def test_parts_of_a_replica_may_differ_and_see_the_same_data(folder):
    assert live(folder, "clean") == [[]] * 4
    assert offline(folder, "clean") == []


def test_replicas_that_drift_apart_are_found_by_those_that_do(folder):
    message = "2 of 2 parameters differ between ranks after SGD.step: ranks 1, 3 disagree"

    found = live(folder, "drifting")

    assert found[0] == found[2] == []
    assert [message, 9] in found[1]
    assert [message, 9] in found[3]
    assert [message, 9] in offline(folder, "drifting")


def test_replicas_that_see_the_same_data_are_found(folder):
    found = live(folder, "same_data")

    for rank, others in enumerate(([0, 2], [1, 3], [0, 2], [1, 3])):
        assert [f"ranks {others[0]} and {others[1]} were given the same inputs", 1] in found[rank]
    assert ["ranks 0 and 2 were given the same inputs", 1] in offline(folder, "same_data")
