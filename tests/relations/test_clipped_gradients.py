"""What is added to gradients after they were clipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from tests.relations.loops import MODEL, failure, holding
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam, ConstantParam
from traincheck_plugin.relations.clipped_gradients import ClippedGradientsRelation
from traincheck_plugin.vocabulary import GIVEN, Item

RELATION = ClippedGradientsRelation()
GIVEN_PARAMS = (
    APIParam(api_full_name="torch.nn.utils.clip_grad_norm_", role="clip", argument=GIVEN),
)
PARAMS = (APIParam(api_full_name="torch.nn.utils.clip_grad_norm_", role="clip"),)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("forward backward clip step zero forward backward clip step", [True, True]),
        ("forward backward forward backward clip step", [True]),
        ("forward backward clip forward backward clip step", [False]),
        ("forward backward clip | forward backward clip step", [False]),
        ("forward backward clip forward backward step", [False]),
        # A gradient that was only measured, and what nobody saw.
        ("forward backward clip zero forward backward clip step", [True]),
        ("forward backward clip by_hand forward backward clip step", [True]),
        ("forward backward clip gap forward backward clip step", [True]),
        ("forward backward step", []),
        ("clip step", []),
    ],
)
def test_what_was_clipped_is_used_as_it_is(words: str, expected: list[bool]) -> None:
    assert holding(RELATION, PARAMS, words) == expected


@given(st.lists(st.sampled_from(["backward", "clip", "zero", "by_hand", "step", "|"])))
def test_steps_are_judged_as_the_formula_says(words: list[str]) -> None:
    expected = []
    for end, word in enumerate(words):
        if word != "step":
            continue
        start = max((i for i in range(end) if words[i] in ("zero", "step")), default=-1) + 1
        own = words[start:end]
        clips = [
            place for place, one in enumerate(own) if one == "clip" and "backward" in own[:place]
        ]
        if not clips:
            continue
        # A backward meets a gradient where nothing cleared what an earlier one of all left.
        added = False
        for place, one in enumerate(own):
            if one == "backward" and place > clips[0]:
                before = words[: start + place]
                cleared = max(
                    (i for i, b in enumerate(before) if b in ("zero", "by_hand")), default=-1
                )
                added |= "backward" in before[cleared + 1 :]
        expected.append(not added)
    assert holding(RELATION, PARAMS, " ".join(words)) == expected


OTHER = "__main__.Net#1"


def _held(*steps: tuple[str, str]) -> list[bool]:
    """Return the verdicts on a window of words, each with a model or a line of the source."""
    run = RunBuilder()
    run.at(stage="training")
    weight = run.parameters("weight", owner=MODEL)
    for word, of in steps:
        if word == "forward":
            run.call("__main__.Net.forward", role="forward", object=of)
        elif word == "evaluate":
            run.at(grad_enabled=False)
            run.call("__main__.Net.forward", role="forward", object=of)
            run.at(grad_enabled=True)
        elif word == "backward":
            with run.calling("torch.Tensor.backward", source=of):
                run.frame("begin", weight, grad=2, optimizer="torch.optim.SGD#0")
        else:
            run.call({"clip": PARAMS[0].api_full_name, "step": "torch.optim.SGD.step"}[word])
    return [holds for _, holds in labels(RELATION, PARAMS, [run.window()])]


def test_only_backwards_that_are_alike_count() -> None:
    first, clip, step = [("forward", MODEL), ("backward", "a:1")], ("clip", ""), ("step", "")
    assert _held(*first, clip, *first, step) == [False]
    assert _held(*first, clip, ("forward", OTHER), ("backward", "a:1"), clip, step) == [True]
    assert _held(*first, clip, ("forward", MODEL), ("backward", "a:2"), clip, step) == [True]
    # An evaluation in between changes nothing.
    second = [("forward", MODEL), ("evaluate", OTHER), ("backward", "a:1")]
    assert _held(*first, clip, *second, step) == [False]


def test_the_rule_and_its_cause_have_words() -> None:
    told = failure(RELATION, PARAMS, "forward backward clip forward backward clip step")
    assert told.message == (
        "a backward added to gradients after clip_grad_norm_, before the step that uses them"
    )
    assert told.cause is not None
    assert "for each micro-batch" in told.cause.text
    assert RELATION.describe(PARAMS) == (
        "no backward adds to gradients between clip_grad_norm_ and the optimizer step"
    )
    assert RELATION.severity(PARAMS) == "warning"
    assert set(RELATION.needs(PARAMS).attributes) == {"backward"}
    with pytest.raises(InvariantError, match="expects one APIParam"):
        RELATION.monitor((ConstantParam(value=1),))


def _clip(run: RunBuilder, *, is_empty: bool, source: str = "a.py:1 in train") -> None:
    outputs = [Item(path=GIVEN, type="str", value="none")] * is_empty
    run.call("torch.nn.utils.clip_grad_norm_", role="clip", outputs=outputs, source=source)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["a.py:1 in f", "a.py:2 in f"]))))
def test_a_clip_without_gradients_is_told_when_it_stays(clips: list[tuple[bool, str]]) -> None:
    expected, num_failed = [], dict.fromkeys(["a.py:1 in f", "a.py:2 in f"], 0)
    events = []
    for is_empty, source in clips:
        num_failed[source] = num_failed[source] + 1 if is_empty else 0
        if num_failed[source] != 1:
            expected.append(not is_empty)
        events.append(lambda run, e=is_empty, s=source: _clip(run, is_empty=e, source=s))
    windows = told(events, range(1, len(events)))
    assert [held for _, held in labels(RELATION, GIVEN_PARAMS, windows)] == expected


def test_it_is_told_why_nothing_is_clipped() -> None:
    monitor = RELATION.monitor(GIVEN_PARAMS)
    [window] = told([lambda run: _clip(run, is_empty=True)] * 2, ())
    explanation = monitor.observe(window).explain(0)
    assert explanation.message == "no parameter that clip_grad_norm_ was given has a gradient"
    assert explanation.cause is not None
    assert "iterator" in explanation.cause.text
    assert RELATION.describe(GIVEN_PARAMS) == (
        "clip_grad_norm_ is given parameters that have gradients"
    )
    assert RELATION.needs(GIVEN_PARAMS).attributes == {}


def test_both_are_proposed_of_each_clip() -> None:
    proposer = RELATION.proposer()
    for window in told([lambda run: _clip(run, is_empty=False)], ()):
        proposer.observe(window)
    assert {h.params for h in proposer.hypotheses()} == {PARAMS, GIVEN_PARAMS}
