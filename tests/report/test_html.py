from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tests.report.examples import STEP, buggy, healthy, result, unchecked, violation
from traincheck_plugin.checker.diagnosis import Diagnosis
from traincheck_plugin.checker.violation import Outcome
from traincheck_plugin.report.html import duration_of, evidence_of, render_html, with_code

VOID = {"meta", "br"}


class Page(HTMLParser):
    """The text of a page; fails where tags are not nested properly."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.tags == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        if "style" not in self.tags:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def test_page_tells_verdict_diagnoses_and_outcomes():
    words = Page(render_html(buggy(problems=("rank 1 is missing",)))).words
    assert "1 problem found, 1 critical" in words
    assert "runs/84911" in words
    assert "rank 1 is missing" in words
    assert "Adadelta.step updated 0 of 2 parameters; zero_grad cleared none" in words
    assert "Both parameters that it holds (_fc.weight, _fc.bias)" in words
    assert "examples/84911.py:152 in train" in words
    assert "40 times, last at step 39; 2 invariants failed" in words
    assert "torch.optim.Optimizer.step changes data of some parameters" in words
    assert "when stage is training" in words
    assert "held in 120 steps of 2 runs, 40 of them held out" in words
    assert words.index("Failed 3") < words.index("Not triggered 1") < words.index("Passed 1")


@pytest.mark.parametrize(
    ("run", "state", "verdict"),
    [
        (buggy(), "critical", "1 problem found, 1 critical"),
        (healthy(), "healthy", "Nothing to report"),
        (unchecked(), "warning", "Nothing found, but not everything could be checked"),
        (result([], []), "unknown", "Nothing was checked: no invariant was triggered"),
    ],
)
def test_verdict(run, state, verdict):
    page = Page(render_html(run))
    assert ("header", {"class": state}) in page.seen
    assert f"TrainCheck: {verdict}" in page.text


def test_page_needs_no_other_file():
    page = Page(render_html(buggy()))
    assert not {tag for tag, _ in page.seen} & {"script", "link", "img", "iframe"}
    assert not any({"src", "href", "style", "onclick"} & attrs.keys() for _, attrs in page.seen)
    assert not re.search(r"https?:|@import|url\(", render_html(buggy()))


def test_everything_from_a_trace_is_escaped():
    evil = "<script>alert('x')</script>\"&"
    hostile = replace(STEP, text_description=evil, relation=evil)
    found = violation(hostile, evil, source=evil, stage=evil)
    diagnosis = Diagnosis(
        message=evil, cause=evil, severity="critical", source=evil, violations=(found,)
    )
    outcomes = [
        Outcome(invariant=hostile, violations=[found]),
        Outcome(invariant=replace(hostile, severity="info"), error=evil),
    ]
    page = render_html(result(outcomes, [diagnosis], run_path=evil, problems=(evil,)))
    assert "<script" not in page
    assert Page(page).text.count(evil) >= 9


def test_evidence_of_an_invariant_without_occurrences_is_its_examples():
    bare = replace(
        STEP,
        evidence=replace(
            STEP.evidence, num_occurrences=0, num_positive_examples=1200, num_negative_examples=1
        ),
    )
    assert evidence_of(bare) == "1,200 examples for, 1 against"


def test_names_between_backticks_are_code():
    assert with_code("holds `fc.<b>`, not `x`") == (
        "holds <code>fc.&lt;b&gt;</code>, not <code>x</code>"
    )
    assert with_code("one ` <i>") == "one ` &lt;i&gt;"


def test_durations_read_as_people_say_them():
    assert [duration_of(int(s * 1e9)) for s in (0, 1.25, 61, 7300)] == [
        "0.0 s",
        "1.2 s",
        "1 min 1 s",
        "2 h 1 min",
    ]
