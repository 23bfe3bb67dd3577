from __future__ import annotations

import re

import pytest

from tests.builders import training_run
from tests.cli.traces import write_trace
from traincheck_plugin.cli import infer
from traincheck_plugin.invariants.jsonl import load_invariants
from traincheck_plugin.relations.registry import relations


def test_learns_invariants_that_can_be_read_back(healthy_trace, tmp_path, capsys):
    output = tmp_path / "invariants.json"
    assert infer.main(["-f", str(healthy_trace), "-o", str(output)]) == 0
    invariants = load_invariants(output, relations().keys())
    assert {"APIContainRelation"} <= {invariant.relation for invariant in invariants}
    out, err = capsys.readouterr()
    last = out.splitlines()[-1]
    assert re.fullmatch(
        rf"Wrote {len(invariants)} invariants \(\d+ critical, \d+ warning, \d+ info\) "
        rf"to {re.escape(str(output))}",
        last,
    )
    assert "in 30 windows" in out
    assert err.splitlines()[0] == "proposing hypotheses ..."


def test_relations_are_chosen_by_name(healthy_trace, tmp_path):
    output = tmp_path / "invariants.json"
    arguments = ["-f", str(healthy_trace), "-o", str(output)]
    assert infer.main([*arguments, "--enable-relation", "APIContainRelation"]) == 0
    assert {i.relation for i in load_invariants(output)} == {"APIContainRelation"}
    assert infer.main([*arguments, "--disable-relation", "APIContainRelation"]) == 0
    assert "APIContainRelation" not in {i.relation for i in load_invariants(output)}


def test_an_unknown_relation_is_named_with_the_known_ones(healthy_trace, tmp_path, capsys):
    output = tmp_path / "invariants.json"
    arguments = ["-f", str(healthy_trace), "-o", str(output), "--enable-relation", "Surprise"]
    assert infer.main(arguments) == 2
    assert capsys.readouterr().err == (
        "traincheck-infer: expected names of relations, got Surprise; "
        f"use some of {', '.join(sorted(relations()))}\n"
    )
    assert not output.exists()


def test_a_short_or_incomplete_reference_is_told(tmp_path, capsys):
    trace = write_trace(tmp_path / "short", training_run(4), world_size=2)
    assert infer.main(["-f", str(trace), "-o", str(tmp_path / "invariants.json")]) == 0
    out = capsys.readouterr().out
    assert "Note: the reference holds only 4 training steps" in out
    assert "has no trace of rank 1: the run had 2 processes" in out


def test_a_run_without_training_teaches_nothing_and_says_so(tmp_path, capsys):
    trace = write_trace(tmp_path / "empty", [])
    output = tmp_path / "invariants.json"
    assert infer.main(["-f", str(trace), "-o", str(output)]) == 0
    out = capsys.readouterr().out
    assert "No invariants: nothing held often enough" in out
    assert load_invariants(output) == ()


def test_a_missing_trace_is_one_line(tmp_path, capsys):
    assert infer.main(["-f", str(tmp_path / "missing")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"traincheck-infer: {tmp_path}/missing is not a trace: expected")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: -f/--trace-folders"),
        (["-f", "x", "-j", "0"], "argument -j/--processes: expected a number of at least 1"),
        (["-f", "x", "--engine", "dask"], "argument --engine: invalid choice: 'dask'"),
        (
            ["-f", "x", "--enable-relation", "A", "--disable-relation", "B"],
            "argument --disable-relation: not allowed with argument --enable-relation",
        ),
    ],
)
def test_wrong_options_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        infer.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
