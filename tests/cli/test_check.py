from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.builders import training_run
from tests.cli.traces import write_trace
from traincheck_plugin.cli import check, infer
from traincheck_plugin.invariants.jsonl import dump_invariants, load_invariants
from traincheck_plugin.invariants.model import SEVERITIES, APIParam, Invariant
from traincheck_plugin.relations.registry import relations

STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
CLEAR = APIParam(api_full_name="torch.optim.Optimizer.zero_grad", role="zero_grad")
RULE = Invariant(relation="FunctionCoverRelation", params=(CLEAR, STEP))


@pytest.fixture(scope="module")
def invariants(healthy_trace):
    path = healthy_trace.parent / "invariants.json"
    assert infer.main(["-f", str(healthy_trace), "-o", str(path)]) == 0
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    code = check.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def closing_lines(num_failed, num_passed, num_not_triggered):
    number = num_failed + num_passed + num_not_triggered
    return [
        f"Checking finished. {number} invariants checked",
        f"Total failed invariants: {num_failed}/{number}",
        f"Total passed invariants: {num_passed}/{number}",
        f"Total invariants that are not triggered: {num_not_triggered}/{number}",
    ]


def num_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_reference_itself_is_healthy(healthy_trace, invariants, tmp_path, capsys):
    code, out, err = run(capsys, "-f", healthy_trace, "-i", invariants, "-o", tmp_path)
    number = len(load_invariants(invariants))
    assert code == 0
    told = re.fullmatch(
        rf"No violation in 30 steps: (\d+) of {number} invariants triggered, and held",
        out.splitlines()[0],
    )
    assert told
    # The rest are laws that the reference had no occasion to show.
    triggered = int(told[1])
    assert number / 3 < triggered < number
    assert out.splitlines()[-4:] == closing_lines(0, triggered, number - triggered)
    assert err.splitlines()[0] == "checking ..."


def test_a_broken_run_is_reported_and_written(buggy_trace, invariants, tmp_path, capsys):
    code, out, _ = run(capsys, "-f", buggy_trace, "-i", invariants, "-o", tmp_path)
    assert code == 1
    assert "CRITICAL  Adam.step updated 0 of 2 parameters\n" in out
    assert "  where   train.py:1 in train\n" in out
    (directory,) = tmp_path.glob("traincheck_checker_results_*")
    assert f"Results: {directory}" in out.splitlines()
    counts = [num_lines(directory / f"{s}.log") for s in ("failed", "passed", "not_triggered")]
    assert out.splitlines()[-4:] == closing_lines(*counts)
    assert load_invariants(directory / "invariants.json") == load_invariants(invariants)
    summary = json.loads((directory / "violations_summary.json").read_text(encoding="utf-8"))
    assert summary["diagnoses"][0]["message"] in out.replace("\n          ", " ")
    assert "Adam.step updated 0 of 2" in (directory / "report.html").read_text(encoding="utf-8")


def test_exit_zero_is_zero(buggy_trace, invariants, tmp_path, capsys):
    code, out, _ = run(capsys, "-f", buggy_trace, "-i", invariants, "-o", tmp_path, "--exit-zero")
    assert code == 0
    assert "CRITICAL" in out


@pytest.mark.parametrize(
    ("severity", "minimum", "code"),
    [
        ("info", "info", 0),
        ("info", "warning", 0),
        ("warning", "info", 1),
        ("warning", "warning", 1),
        ("warning", "critical", 0),
        ("critical", "critical", 1),
    ],
)
def test_exit_code_follows_what_is_reported(
    buggy_trace, invariants, tmp_path, capsys, severity, minimum, code
):
    """Info alone never fails a pipeline, even when it is shown."""
    rules = tmp_path / "rules.json"
    dump_invariants([replace(i, severity=severity) for i in load_invariants(invariants)], rules)
    got, out, _ = run(
        capsys, "-f", buggy_trace, "-i", rules, "-o", tmp_path, "--min-severity", minimum
    )
    assert got == code
    shown = SEVERITIES.index(severity) >= SEVERITIES.index(minimum)
    assert (severity.upper() in out) == shown
    assert (f"at {severity}: see failed.log" in out) != shown


def test_several_traces_are_told_apart(healthy_trace, buggy_trace, invariants, tmp_path, capsys):
    code, out, err = run(capsys, "-f", healthy_trace, buggy_trace, "-i", invariants, "-o", tmp_path)
    assert code == 1
    assert f"== {healthy_trace}" in out
    assert f"== {buggy_trace}" in out
    (directory,) = tmp_path.glob("traincheck_checker_results_*")
    assert num_lines(directory / "healthy" / "failed.log") == 0
    assert num_lines(directory / "buggy" / "failed.log") > 0
    assert f"{buggy_trace}: checking ..." in err


def test_a_checker_error_is_not_healthy(healthy_trace, invariants, tmp_path, capsys, monkeypatch):
    """GIVEN a relation that fails, THEN its invariants are neither passed nor forgotten."""
    relation = type(relations()["APIContainRelation"])

    class Failing:
        def observe(self, window):
            raise KeyError("grad")

    monkeypatch.setattr(relation, "monitor", lambda self, params: Failing())
    code, out, _ = run(capsys, "-f", healthy_trace, "-i", invariants, "-o", tmp_path)
    assert code == 2
    assert "Nothing found in 30 steps, but not everything could be checked" in out
    assert "  APIContainRelation: checker error: KeyError: 'grad'" in out
    assert "No violation" not in out
    (directory,) = tmp_path.glob("traincheck_checker_results_*")
    number = num_lines(directory / "errors.log")
    total = num_lines(invariants)
    assert f"Total invariants with checker errors: {number}/{total}" in out
    code, _, _ = run(capsys, "-f", healthy_trace, "-i", invariants, "-o", tmp_path, "--exit-zero")
    assert code == 0


def test_what_cannot_be_checked_is_left_out_and_told(healthy_trace, tmp_path, capsys):
    rules = tmp_path / "upstream.json"
    unfit = Invariant(relation="APIContainRelation", params=(APIParam(api_full_name="f"),) * 5)
    dump_invariants([unfit], rules)
    code, out, _ = run(capsys, "-f", healthy_trace, "-i", rules, "-o", tmp_path)
    assert code == 0
    assert "Nothing was checked" in out
    assert "Note: 1 invariant was left out: " in out


def test_a_cut_trace_is_told(invariants, tmp_path, capsys):
    trace = write_trace(tmp_path / "cut", training_run(30, num_functions=2), world_size=2)
    (trace / "rank_0" / "end.json").unlink()
    code, out, _ = run(capsys, "-f", trace, "-i", invariants, "-o", tmp_path)
    assert code == 0
    assert "Note: rank_0 has no end.json: recovered 30 windows" in out
    assert "has no trace of rank 1" in out


@pytest.mark.parametrize(
    ("trace", "rules", "message"),
    [
        ("missing", "rules.json", "missing is not a trace: expected the directory of a run"),
        (None, "missing.json", "missing.json: expected a file of invariants, found nothing"),
        (None, "broken.json", "broken.json:1: expected one JSON object on the line, got 'oops'"),
        (None, "unknown.json", "unknown.json:1: expected a known relation, got 'Surprise'"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_2(
    healthy_trace, tmp_path, capsys, trace, rules, message
):
    dump_invariants([RULE], tmp_path / "rules.json")
    (tmp_path / "broken.json").write_text("oops", encoding="utf-8")
    dump_invariants([Invariant(relation="Surprise", params=())], tmp_path / "unknown.json")
    path = healthy_trace if trace is None else tmp_path / trace
    code, out, err = run(capsys, "-f", path, "-i", tmp_path / rules, "-o", tmp_path)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("traincheck-check: ")
    assert message in line
    assert not list(tmp_path.glob("traincheck_checker_results_*"))


def test_results_that_cannot_be_written_are_one_line(healthy_trace, invariants, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, _, err = run(capsys, "-f", healthy_trace, "-i", invariants, "-o", tmp_path / "file")
    assert code == 2
    assert err.splitlines()[-1] == f"traincheck-check: {tmp_path}/file: File exists"


def test_severities_are_those_of_the_model():
    assert check.SEVERITIES == SEVERITIES


@pytest.mark.parametrize("command", ["check", "infer"])
def test_help_is_quick_and_imports_nothing_heavy(command):
    script = (
        "import sys\n"
        f"from traincheck_plugin.cli.{command} import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as exit:\n"
        "    assert exit.code == 0\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"usage: traincheck-{command}" in result.stdout
    assert time.perf_counter() - start < 2.0


def test_checking_imports_no_torch(healthy_trace, invariants, tmp_path):
    script = (
        "import sys\n"
        "from traincheck_plugin.cli.check import main\n"
        f"code = main(['-f', {str(healthy_trace)!r}, '-i', {str(invariants)!r}, "
        f"'-o', {str(tmp_path)!r}])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_following_a_run_that_has_ended_is_a_check(buggy_trace, invariants, tmp_path, capsys):
    code, out, err = run(
        capsys, "-f", buggy_trace, "-i", invariants, "-o", tmp_path / "a", "--follow"
    )
    _, offline, _ = run(capsys, "-f", buggy_trace, "-i", invariants, "-o", tmp_path / "b")
    assert code == 1
    assert err == f"following {buggy_trace}; Ctrl-C ends the check with a report\n"
    live, _, final = out.partition("The run has ended. All that was found:\n\n")
    assert "CRITICAL  Adam.step updated 0 of 2 parameters" in live
    assert without_paths(final) == without_paths(offline)


def without_paths(text):
    return [line for line in text.splitlines() if not line.startswith("Results: ")]


def test_only_one_trace_can_be_followed(healthy_trace, buggy_trace, invariants, tmp_path, capsys):
    code, _, err = run(
        capsys, "-f", healthy_trace, buggy_trace, "-i", invariants, "-o", tmp_path, "--follow"
    )
    assert code == 2
    assert err == (
        "traincheck-check: expected one trace with --follow, got 2; "
        "follow each in a command of its own\n"
    )
