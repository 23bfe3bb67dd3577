"""The main job: invariants of one healthy script, checked on other scripts, healthy and broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.catalog import script
from traincheck_plugin.checker.check import CheckResult, check
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.cli import infer as infer_command
from traincheck_plugin.inference.infer import infer
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.invariants.model import APIParam, Invariant
from traincheck_plugin.invariants.sources import load_sources
from traincheck_plugin.trace.reader import open_run

TUTORIAL = Path(__file__).parent.parent / "examples" / "tutorial"
MNIST = TUTORIAL / "mnist.py"
FORUM = TUTORIAL / "forum_84911.py"

pytestmark = pytest.mark.slow


def collect(path: Path, directory: Path, *arguments: str) -> Path:
    """Collect a trace of a script, as a user does."""
    command = [sys.executable, "-m", "traincheck_plugin.cli.collect", "--pyscript", str(path)]
    done = subprocess.run(
        [*command, "--output-dir", str(directory), "--", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> tuple[Invariant, ...]:
    folder = tmp_path_factory.mktemp("reference")
    trace = collect(MNIST, folder / "trace", "--seed", "1")
    file = folder / "invariants.json"
    assert infer_command.main(["-f", str(trace), "-o", str(file)]) == 0
    return load_invariants(file)


def reported(result: CheckResult) -> list[Diagnosis]:
    return [d for d in result.diagnoses if d.severity != "info"]


def failures(result: CheckResult) -> list[str]:
    return [f"{d.severity} step {d.first.step}: {d.message}: {d.cause}" for d in result.diagnoses]


def triggered_roles(result: CheckResult) -> set[str]:
    return {
        param.role or ""
        for outcome in result.outcomes
        if outcome.num_triggered and outcome.invariant.severity == "critical"
        for param in outcome.invariant.params
        if isinstance(param, APIParam)
    }


def test_the_reference_says_what_it_is(reference) -> None:
    assert {i.severity for i in reference} == {"critical", "warning", "info"}
    assert all(i.text_description and i.evidence.num_occurrences >= 3 for i in reference)
    assert all(i.pipelines[0].script == "mnist.py" for i in reference)
    assert {p.api_full_name for i in reference for p in i.params if isinstance(p, APIParam)} >= {
        "torch.optim.Optimizer.step",
        "torch.optim.Optimizer.zero_grad",
        "torch.autograd.backward",
    }


@pytest.mark.parametrize("optimizer", ["adam", "adadelta"])
def test_forum_bug_84911_is_one_critical_diagnosis_with_its_cause(
    reference, tmp_path, optimizer
) -> None:
    trace = collect(FORUM, tmp_path / "trace", "--optimizer", optimizer)
    result = check(open_run(trace), reference)
    diagnosis, *further = reported(result)
    assert len(further) <= 2
    assert diagnosis.severity == "critical"
    assert diagnosis.first.step == 0
    name = {"adam": "Adam", "adadelta": "Adadelta"}[optimizer]
    assert f"{name}.step updated 0 of 2 parameters" in diagnosis.message
    assert "`_fc.weight`, `_fc.bias`" in diagnosis.cause
    assert "requires_grad=False" in diagnosis.cause
    assert "in no optimizer" in diagnosis.cause
    line = next(
        number
        for number, text in enumerate(FORUM.read_text().splitlines(), 1)
        if "optimizer.step()" in text
    )
    assert diagnosis.source.endswith(f"forum_84911.py:{line} in train")


def test_the_repaired_script_is_silent(reference, tmp_path) -> None:
    trace = collect(FORUM, tmp_path / "trace", "--fixed")
    assert not failures(check(open_run(trace), reference))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seed", "2"),
        ("--seed", "3"),
        ("--batch-size", "48"),
        ("--epochs", "3", "--batches-per-epoch", "20"),
        ("--batches-per-epoch", "63", "--epochs", "1"),
    ],
    ids=["seed 2", "seed 3", "batch size 48", "one more epoch", "uneven last batch"],
)
def test_other_runs_of_the_reference_are_silent(reference, tmp_path, arguments) -> None:
    trace = collect(MNIST, tmp_path / "trace", *arguments)
    assert not failures(check(open_run(trace), reference))


OTHERS = (
    "accumulation",
    "adapters",
    "ema",
    "finetune",
    "gan",
    "lbfgs",
    "lstm",
    "manual_clear",
    "stochastic_depth",
    "transformer",
    "unfreeze",
    "vae",
)
"""Those checked here, in all they do; `make quality` checks every script."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_healthy_scripts_are_silent_and_checked(reference, tmp_path, name) -> None:
    run = open_run(collect(script(name), tmp_path / "trace"))
    wanted = {"step", "backward"}
    for invariants in (load_sources(["default"]), reference):
        result = check(run, invariants)
        assert not failures(result)
        assert triggered_roles(result) >= wanted


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("adapters", "adapters_frozen"),
        ("adapters", "no_zero_grad"),
        ("finetune", "optimizer_before_replacement"),
        ("lstm", "step_before_backward"),
        ("stochastic_depth", "detached_output"),
        ("vae", "other_model_optimizer"),
    ],
)
def test_the_bundled_invariants_find_a_bug_in_the_first_step(tmp_path, name, bug) -> None:
    trace = collect(script(name), tmp_path / "trace", "--epochs", "1", "--bug", bug)
    found = reported(check(open_run(trace), load_sources(["default"])))
    assert found
    assert found[0].severity == "critical"
    assert found[0].first.step <= 1
    assert found[0].cause


@pytest.mark.parametrize("name", ["vae", "lstm"])
@pytest.mark.parametrize("bug", ["no_zero_grad", "step_before_backward", "other_model_optimizer"])
def test_a_seeded_bug_is_reported_within_a_step(reference, tmp_path, name, bug) -> None:
    trace = collect(script(name), tmp_path / "trace", "--epochs", "1", "--bug", bug)
    found = reported(check(open_run(trace), reference))
    assert found
    assert found[0].first.step <= 1
    assert found[0].cause
    assert len(found) <= 2


def test_a_partial_trace_gives_a_partial_result(reference, tmp_path, capsys) -> None:
    from traincheck_plugin.cli import check as check_command

    trace = collect(script("vae"), tmp_path / "trace", "--epochs", "1")
    calls = trace / "rank_0" / "calls.arrow"
    calls.write_bytes(calls.read_bytes()[: calls.stat().st_size * 2 // 3])
    file = tmp_path / "invariants.json"
    from traincheck_plugin.invariants.jsonl import dump_invariants

    dump_invariants(reference, file)
    code = check_command.main(["-f", str(trace), "-i", str(file), "-o", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code in (0, 1)
    assert "is cut in the middle" in printed.out + printed.err
    (summary,) = (tmp_path / "out").rglob("violations_summary.json")
    assert json.loads(summary.read_text())


@pytest.mark.parametrize("name", ["vae", "lstm"])
def test_a_frozen_part_is_reported_by_those_who_know_the_pipeline(
    reference, tmp_path, name
) -> None:
    run = open_run(
        collect(script(name), tmp_path / "trace", "--epochs", "1", "--bug", "frozen_encoder")
    )
    # Healthy pipelines hand frozen parts to their optimizers too: other references cannot tell.
    assert not failures(check(run, reference))
    healthy = open_run(collect(script(name), tmp_path / "healthy"))
    found = reported(check(run, infer([healthy]).invariants))
    assert found
    assert found[0].first.step == 0
    assert "requires_grad=False" in found[0].cause
