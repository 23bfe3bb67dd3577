from __future__ import annotations

import threading

import pytest

from tests.builders import training_run
from traincheck_plugin.checker.check import check
from traincheck_plugin.checker.follow import follow
from traincheck_plugin.errors import TraceError
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.trace.manifest import Manifest
from traincheck_plugin.trace.reader import RankTrace, open_run
from traincheck_plugin.trace.writer import TraceWriter

MANIFEST = Manifest(script="train.py", world_size=2)


def writers(path):
    return [TraceWriter(path, MANIFEST, rank=rank, flush_seconds=0.02) for rank in range(2)]


@pytest.fixture(scope="module")
def invariants(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "trace"
    for rank, writer in enumerate(writers(path)):
        for window in training_run(30, rank=rank, world_size=2):
            writer.write(window)
        writer.close()
    return infer([open_run(path)]).invariants


def test_a_running_run_is_told_before_it_ends_and_judged_as_offline(tmp_path, invariants):
    """GIVEN a run whose rank 1 alone is broken, THEN it is told while the run goes on."""
    path = tmp_path / "trace"
    healthy, broken = writers(path)
    for window in training_run(30, rank=0, world_size=2):
        healthy.write(window)
    windows = training_run(30, rank=1, world_size=2, updates=False)
    for window in windows[:20]:
        broken.write(window)
    told = []
    has_told = threading.Event()
    results = []

    def tell(diagnosis):
        told.append(diagnosis)
        has_told.set()

    thread = threading.Thread(
        target=lambda: results.append(follow(open_run(path), invariants, tell=tell))
    )
    thread.start()
    assert has_told.wait(30)
    assert thread.is_alive()
    for window in windows[20:]:
        broken.write(window)
    healthy.close()
    broken.close()
    thread.join(30)
    assert "Adam.step updated 0 of 2 parameters" in [diagnosis.message for diagnosis in told]
    assert {v.rank for diagnosis in told for v in diagnosis.violations} == {1}
    offline = check(open_run(path), invariants)
    assert results == [offline]
    assert offline.num_steps == 30


def test_each_diagnosis_is_told_once(tmp_path, invariants):
    path = tmp_path / "trace"
    for rank, writer in enumerate(writers(path)):
        for window in training_run(12, rank=rank, world_size=2, updates=False):
            writer.write(window)
        writer.close()
    told = []
    result = follow(open_run(path), invariants, tell=told.append)
    violations = [id(v) for diagnosis in told for v in diagnosis.violations]
    assert len(violations) == len(set(violations))
    assert {d.message for d in told} == {d.message for d in result.diagnoses}


def test_interrupting_ends_with_what_was_seen(tmp_path, invariants):
    """GIVEN a run that goes on, WHEN Ctrl-C comes, THEN the result says what it is based on."""
    path = tmp_path / "trace"
    open_writers = writers(path)
    for rank, writer in enumerate(open_writers):
        for window in training_run(12, rank=rank, world_size=2, updates=False):
            writer.write(window)

    def interrupt(diagnosis):
        raise KeyboardInterrupt

    result = follow(open_run(path), invariants, tell=interrupt)
    for writer in open_writers:
        writer.close()
    assert "Adam.step updated 0 of 2 parameters" in [d.message for d in result.diagnoses]
    assert any("still writing" in problem for problem in result.problems)
    assert not any(thread.name.startswith("traincheck-follow") for thread in threading.enumerate())


def test_an_error_of_one_rank_ends_all(tmp_path, invariants, monkeypatch):
    path = tmp_path / "trace"
    open_writers = writers(path)

    def unreadable(self, **options):
        raise TraceError(f"{self.path} cannot be followed")

    monkeypatch.setattr(RankTrace, "stretches", unreadable)
    with pytest.raises(TraceError, match="cannot be followed"):
        follow(open_run(path), invariants, tell=lambda diagnosis: None)
    for writer in open_writers:
        writer.close()
