"""What is inferred from told runs, and what it says of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders import RunBuilder, training_run
from tests.traces import recorded
from traincheck_plugin.checker.check import CheckResult, check
from traincheck_plugin.engine import LocalEngine
from traincheck_plugin.events import Window
from traincheck_plugin.inference.corpus import (
    NO_CORPUS,
    bundled_corpus,
    dump_corpus,
    load_corpus,
)
from traincheck_plugin.inference.infer import InferenceResult, infer
from traincheck_plugin.invariants.model import APIParam, Invariant
from traincheck_plugin.relations.registry import choose
from traincheck_plugin.trace.reader import Run
from traincheck_plugin.vocabulary import GradState

HEALTHY = {"num_functions": 3}


@pytest.fixture
def healthy(tmp_path: Path) -> InferenceResult:
    return infer([recorded(tmp_path / "healthy", training_run(24, **HEALTHY))])


def _reported(result: CheckResult) -> list[str]:
    return [d.message for d in result.diagnoses if d.severity != "info"]


def _find(invariants: tuple[Invariant, ...], text: str) -> Invariant:
    return next(i for i in invariants if i.text_description == text)


def test_what_holds_is_found_and_holds_on_its_reference(
    healthy: InferenceResult, tmp_path: Path
) -> None:
    rule = _find(healthy.invariants, "Optimizer.step updates at least one parameter it holds")
    assert rule.severity == "critical"
    assert rule.scope == "universal"
    known = bundled_corpus()[rule.hypothesis].occurrences(
        list(bundled_corpus()[rule.hypothesis].counts)
    )
    assert rule.evidence.num_occurrences == known.number + 24
    assert rule.evidence.num_held_out == known.held_out + 8
    assert rule.evidence.num_runs == len(known.runs) + 1
    assert rule.pipelines[0].script == "train.py"
    run = recorded(tmp_path / "again", training_run(24, **HEALTHY))
    result = check(run, healthy.invariants)
    assert not result.diagnoses
    assert {o.status for o in result.outcomes} <= {"passed", "not_triggered"}
    assert result.num_steps == 24


def test_the_first_zero_grad_has_nothing_to_clear(tmp_path: Path) -> None:
    alone = infer([recorded(tmp_path / "alone", training_run(24))], corpus=NO_CORPUS)
    rule = _find(
        alone.invariants,
        "Optimizer.zero_grad clears the gradient of at least one parameter it holds",
    )
    assert rule.evidence.num_negative_examples == 0
    assert rule.evidence.num_positive_examples == 23
    assert rule.evidence.failure_bound == pytest.approx(1 - 0.05 ** (1 / 23))


@pytest.mark.parametrize("optimizer", ["torch.optim.SGD#0", "torch.optim.Adam#0"])
def test_what_one_optimizer_showed_is_said_of_all(
    healthy: InferenceResult, tmp_path: Path, optimizer: str
) -> None:
    other = {"names": ("layer.weight",), "model": "__main__.Other#0", "optimizer": optimizer}
    clean = check(recorded(tmp_path / "clean", training_run(6, **other)), healthy.invariants)
    assert not clean.diagnoses
    assert any(
        o.status == "passed" and o.invariant.text_description.startswith("Optimizer.step updates")
        for o in clean.outcomes
    )
    frozen = training_run(6, updates=False, grad=GradState.NULL, **other)
    result = check(recorded(tmp_path / "frozen", frozen), healthy.invariants)
    name = optimizer.split(".")[2].split("#")[0]
    assert len(_reported(result)) == 1
    assert set(_reported(result)[0].split("; ")) == {
        "Tensor.backward gave a gradient to 0 of 1 parameter",
        f"{name}.step updated 0 of 1 parameter",
    }
    diagnosis = result.diagnoses[0]
    assert diagnosis.severity == "critical"
    assert diagnosis.first.step == 0
    assert diagnosis.violations[0].num_occurrences == 6
    assert diagnosis.violations[0].last_step == 5


def test_dropping_zero_grad_is_one_diagnosis(healthy: InferenceResult, tmp_path: Path) -> None:
    windows = training_run(6, clears=False, names=("w",), model="__main__.Other#0")
    result = check(recorded(tmp_path / "run", windows), healthy.invariants)
    facts = {d.violations[0].cause.fact for d in result.diagnoses if d.violations[0].cause}
    assert "gradients accumulate" in facts


def test_rules_of_a_pipeline_stay_silent_elsewhere(
    healthy: InferenceResult, tmp_path: Path
) -> None:
    rule = _find(healthy.invariants, "Net.forward calls relu")
    assert rule.scope == "pipeline"
    same = check(recorded(tmp_path / "same", training_run(6)), [rule])
    assert [o.status for o in same.outcomes] == ["failed"]
    assert same.problems == ()
    other = training_run(6, names=("a.weight", "b.weight"))
    elsewhere = check(recorded(tmp_path / "other", other, "other.py"), [rule])
    assert [o.status for o in elsewhere.outcomes] == ["not_triggered"]
    assert elsewhere.problems == (
        "1 of 1 invariants were not checked: they speak of the models of train.py, and this run "
        "trains another one",
    )


CLEARS = "Optimizer.zero_grad clears the gradient of at least one parameter it holds"
PIPELINES = (("fc.weight",), ("stem.weight", "head.weight"), ("w", "b"))


def _told(folder: Path, names: tuple[str, ...], **options: object) -> Run:
    name = "-".join(names)
    return recorded(folder / name, training_run(24, names=names, **options), f"{name}.py")


def test_what_many_pipelines_show_is_believed_of_all(tmp_path: Path) -> None:
    runs = [_told(tmp_path, names) for names in PIPELINES]
    for number in (1, 2, 3):
        rule = _find(infer(runs[:number], corpus=NO_CORPUS).invariants, CLEARS)
        assert rule.scope == ("universal" if number == 3 else "pipeline")
    # Three runs of one pipeline are one pipeline.
    again = [_told(tmp_path / str(n), PIPELINES[0]) for n in range(3)]
    assert _find(infer(again, corpus=NO_CORPUS).invariants, CLEARS).scope == "pipeline"


def test_the_corpus_supports_and_refutes(tmp_path: Path) -> None:
    run = _told(tmp_path, ("mine.weight",))
    others = [_told(tmp_path, names) for names in PIPELINES]
    supported = infer(others, corpus=NO_CORPUS).tallies
    dump_corpus(supported.items(), tmp_path / "supported.jsonl")
    corpus = load_corpus(tmp_path / "supported.jsonl")
    rule = _find(infer([run], corpus=corpus).invariants, CLEARS)
    assert rule.scope == "universal"
    assert rule.evidence.num_runs == 4
    # One healthy pipeline that never clears is enough.
    never = _told(tmp_path / "never", ("odd.weight",), clears=False)
    refuted = infer([run], corpus=infer([*others, never], corpus=NO_CORPUS).tallies)
    rule = _find(refuted.invariants, CLEARS)
    assert rule.scope == "pipeline"
    assert rule.evidence.num_runs == 1


def test_what_a_file_of_the_corpus_holds_is_what_was_written(tmp_path: Path) -> None:
    tallies = infer([_told(tmp_path, names) for names in PIPELINES]).tallies
    dump_corpus(tallies.items(), tmp_path / "first.jsonl")
    dump_corpus(load_corpus(tmp_path / "first.jsonl").items(), tmp_path / "second.jsonl")
    text = (tmp_path / "first.jsonl").read_text()
    assert text == (tmp_path / "second.jsonl").read_text()
    assert text.count("\n") == len(tallies)


def test_runs_add_up_in_any_order_and_in_any_number_of_processes(tmp_path: Path) -> None:
    first = recorded(tmp_path / "first", training_run(12, **HEALTHY))
    second = recorded(
        tmp_path / "second", training_run(15, optimizer="torch.optim.SGD#0", names=("w", "b"))
    )
    one = infer([first, second], corpus=NO_CORPUS)
    other = infer([second, first], corpus=NO_CORPUS, engine=LocalEngine(2))

    def essence(result: InferenceResult) -> list[Invariant]:
        invariants = [replace(i, pipelines=()) for i in result.invariants]
        return sorted(invariants, key=str)

    assert essence(one) == essence(other)
    rule = _find(one.invariants, "Optimizer.step updates at least one parameter it holds")
    assert rule.evidence.num_runs == 2
    assert rule.evidence.num_occurrences == 27
    # What both optimizers do is said once.
    names = {p.api_full_name for i in one.invariants for p in i.params if isinstance(p, APIParam)}
    assert "torch.optim.SGD.step" not in names


def test_a_short_reference_is_said_to_be_short(tmp_path: Path) -> None:
    result = infer([recorded(tmp_path / "short", training_run(5))], corpus=NO_CORPUS)
    assert {i.severity for i in result.invariants} == {"info"}
    assert any("only 5 training steps" in note for note in result.notes)
    nothing = infer([recorded(tmp_path / "nothing", [RunBuilder().window()])])
    assert not nothing.invariants
    assert any("no optimizer step" in note for note in nothing.notes)


def test_only_the_wanted_relations(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", training_run(12, **HEALTHY))
    result = infer([run], relations=choose(["FunctionCoverRelation"]))
    assert {i.relation for i in result.invariants} == {"FunctionCoverRelation"}


def test_unrelated_calls_change_nothing(tmp_path: Path) -> None:
    def with_noise(windows: list[Window]) -> list[Window]:
        run = RunBuilder()
        parameters = run.parameters("fc.weight", "fc.bias")
        noisy = []
        for _ in windows:
            run.call("torch.Tensor.item", source="noise.py:1 in log")
            noisy.append(run.training_step(parameters, **HEALTHY))
        return noisy

    plain = training_run(12, **HEALTHY)
    quiet = infer([recorded(tmp_path / "quiet", plain)])
    noisy = infer([recorded(tmp_path / "noisy", with_noise(plain))])
    assert {i.text_description for i in quiet.invariants} <= {
        i.text_description for i in noisy.invariants
    }
