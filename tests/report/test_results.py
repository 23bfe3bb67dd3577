from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime

from tests.report.examples import CLEAR, STEP, buggy, healthy, unchecked
from traincheck_plugin.invariants.codec import decode_invariant
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.report.results import create_results_directory, write_results

ENTRY = {
    "invariant",
    "severity",
    "message",
    "check_passed",
    "triggered",
    "detection_time",
    "detection_time_percentage",
    "detection_step",
    "rank",
    "source",
    "trace",
}


def entries(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_directory_is_new_each_time(tmp_path):
    now = datetime(2026, 1, 2, 3, 4, 5)
    first = create_results_directory(tmp_path / "deep" / "er", now)
    second = create_results_directory(tmp_path / "deep" / "er", now)
    assert first.name == "traincheck_checker_results_2026-01-02_03-04-05"
    assert second.name == "traincheck_checker_results_2026-01-02_03-04-05_2"


def test_each_invariant_has_one_entry_in_the_log_of_its_status(tmp_path):
    run = buggy()
    write_results(tmp_path, [run], [o.invariant for o in run.outcomes])
    assert {path.name for path in tmp_path.iterdir()} == {
        "failed.log",
        "passed.log",
        "not_triggered.log",
        "violations_summary.json",
        "report.html",
        "invariants.json",
    }
    failed = entries(tmp_path / "failed.log")
    passed = entries(tmp_path / "passed.log")
    not_triggered = entries(tmp_path / "not_triggered.log")
    assert [len(failed), len(passed), len(not_triggered)] == [3, 1, 1]
    assert all(entry.keys() >= ENTRY for entry in failed + passed + not_triggered)
    assert [entry["severity"] for entry in failed] == ["critical", "warning", "info"]
    assert decode_invariant(failed[0]["invariant"]) == STEP
    assert {name: failed[0][name] for name in ENTRY - {"invariant"}} == {
        "severity": "critical",
        "message": "Adadelta.step updated 0 of 2 parameters",
        "check_passed": False,
        "triggered": True,
        "detection_time": 500_000_000,
        "detection_time_percentage": 0.25,
        "detection_step": 0,
        "rank": 0,
        "source": "examples/84911.py:152 in train",
        "trace": "runs/84911",
    }
    assert [(e["check_passed"], e["triggered"]) for e in passed] == [(True, True)]
    assert [(e["check_passed"], e["triggered"]) for e in not_triggered] == [(True, False)]
    assert load_invariants(tmp_path / "invariants.json") == tuple(o.invariant for o in run.outcomes)


def test_checker_errors_have_a_log_of_their_own(tmp_path):
    write_results(tmp_path, [unchecked()], [STEP, CLEAR])
    (error,) = entries(tmp_path / "errors.log")
    assert error["message"] == "checker error: KeyError: 'grad'"
    assert error["check_passed"] is False
    assert len(entries(tmp_path / "passed.log")) == 1
    assert entries(tmp_path / "failed.log") == []


def test_summary_counts_and_tells_the_diagnoses(tmp_path):
    write_results(tmp_path, [buggy(problems=("rank 1 is missing",))], [])
    summary = json.loads((tmp_path / "violations_summary.json").read_text(encoding="utf-8"))
    assert summary["num_invariants"] == 5
    assert (summary["num_failed"], summary["num_passed"], summary["num_not_triggered"]) == (3, 1, 1)
    assert summary["num_failed_by_severity"] == {"critical": 1, "warning": 1, "info": 1}
    assert summary["problems"] == ["rank 1 is missing"]
    gravest, other = summary["diagnoses"]
    assert (gravest["severity"], gravest["first_step"], gravest["num_occurrences"]) == (
        "critical",
        0,
        40,
    )
    assert gravest["cause"].startswith("Both parameters that it holds")
    assert [v["message"] for v in gravest["violations"]] == [
        "Adadelta.step updated 0 of 2 parameters",
        "zero_grad cleared none",
    ]
    assert (other["severity"], other["first_step"], other["cause"]) == ("info", 3, "")


def test_several_runs_get_a_directory_each_even_of_one_name(tmp_path):
    runs = [buggy(run_path="a/trace"), replace(healthy(), run_path="b/trace/")]
    write_results(tmp_path, runs, [STEP])
    assert len(entries(tmp_path / "trace" / "failed.log")) == 3
    assert entries(tmp_path / "trace_2" / "failed.log") == []
    assert (tmp_path / "invariants.json").exists()
