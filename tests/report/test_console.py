from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from tests.report.examples import STEP, buggy, healthy, result, unchecked, violation
from tests.report.snapshot import assert_snapshot
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.checker.violation import Outcome
from traincheck_plugin.report.console import print_results


def printed(results, minimum="warning", width=80, **options) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, **options)
    print_results(results, console, minimum, Path("traincheck_checker_results_now"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "results", "minimum"),
    [
        ("buggy", [buggy()], "warning"),
        ("buggy_with_info", [buggy()], "info"),
        ("healthy", [healthy()], "critical"),
        ("unchecked", [unchecked()], "warning"),
        ("cut", [healthy(problems=("rank 0: the trace ends in a torn batch",))], "warning"),
        ("several", [healthy(), buggy()], "warning"),
    ],
)
def test_report_reads_as_in_its_snapshot(name, results, minimum):
    text = printed(results, minimum)
    assert_snapshot(f"{name}.txt", text)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_closing_lines_are_exact_and_last():
    assert printed([buggy()]).splitlines()[-4:] == [
        "Checking finished. 5 invariants checked",
        "Total failed invariants: 3/5",
        "Total passed invariants: 1/5",
        "Total invariants that are not triggered: 1/5",
    ]


def test_several_runs_count_an_invariant_once():
    """STEP and CLEAR fail on one run and pass on the other; RATE fails on one only."""
    assert printed([healthy(), buggy()]).splitlines()[-4:] == [
        "Checking finished. 5 invariants checked",
        "Total failed invariants: 3/5",
        "Total passed invariants: 1/5",
        "Total invariants that are not triggered: 1/5",
    ]


def test_a_terminal_gets_the_same_lines_in_colour():
    plain = printed([buggy()])
    coloured = printed([buggy()], force_terminal=True, color_system="standard")
    assert "\x1b[1;31mCRITICAL" in coloured
    assert Text.from_ansi(coloured).plain.splitlines() == plain.splitlines()


def test_long_places_and_names_are_never_broken():
    source = "/home/some one/" + "deep/" * 30 + "train.py:152 in train"
    name = "model." + "layers." * 20 + "weight"
    found = violation(STEP, f"step left {name} as it was", source=source)
    diagnosis = Diagnosis(
        message=found.message, cause="", severity="critical", source=source, violations=(found,)
    )
    run = result([Outcome(invariant=STEP, violations=[found])], [diagnosis])
    text = printed([run], width=60)
    assert f"  where   {source}\n" in text
    assert name in text


def test_text_of_a_trace_neither_styles_nor_steers_the_terminal():
    found = violation(STEP, "layers[0] [red]moved[/red] \x1b[2J\nTotal failed: 0/0")
    diagnosis = Diagnosis(
        message=found.message, cause="", severity="critical", source="", violations=(found,)
    )
    run = result([Outcome(invariant=STEP, violations=[found])], [diagnosis])
    text = printed([run])
    assert "layers[0] [red]moved[/red]" in text
    assert "\x1b" not in text
    assert not any(line.startswith("Total failed: ") for line in text.splitlines())


def test_nothing_triggered_is_not_healthy():
    run = healthy()
    run = replace(run, outcomes=tuple(Outcome(invariant=o.invariant) for o in run.outcomes))
    assert "Nothing was checked: none of 3 invariants was triggered" in printed([run])


def test_nothing_to_check_is_not_healthy():
    assert "Nothing was checked: none of 0 invariants" in printed([result([], [])])


def test_hidden_diagnoses_are_counted_by_severity():
    text = printed([buggy()], "critical")
    assert "1 more at info: see failed.log, or --min-severity info" in text
    assert "StepLR" not in text
