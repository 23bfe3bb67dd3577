"""How often something is called for each optimizer step, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import Label, labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.jsonl import dump_invariants, load_invariants
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Invariant,
    Param,
    VarTypeParam,
)
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.call_count import SETTLING_CYCLES, CallCountRelation

RELATION = CallCountRelation()
STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
BACKWARD = APIParam(api_full_name="torch.Tensor.backward", role="backward")
SCHEDULER = APIParam(api_full_name="torch.optim.lr_scheduler.LRScheduler.step", role="scheduler")
CLIP = APIParam(api_full_name="torch.nn.utils.clip_grad_norm_", role="clip")
ONE, TWO = ConstantParam(value=1), ConstantParam(value=2)

OTHER = "torch.optim.Adam#1"
CALLS = {
    "backward": "torch.Tensor.backward",
    "scheduler": "torch.optim.lr_scheduler.StepLR.step",
    "clip": "torch.nn.utils.clip_grad_norm_",
    "skip": "torch.amp.GradScaler.step",
}
STEPS = {
    "step": "torch.optim.Adam#0",
    "failed": "torch.optim.Adam#0",
    "scaled": "torch.optim.Adam#0",
    "other": OTHER,
}
"""The optimizer of each kind of step."""


def _windows(events: Sequence[str], cuts: Sequence[int] = ()) -> list[Window]:
    """Tell *events* and close a window before each position in *cuts* and around each gap."""
    run = RunBuilder()
    windows = []
    for position, event in enumerate(events):
        if position in cuts:
            windows.append(run.window())
        if event == "gap":
            windows += [run.window(), run.window(observed=False)]
        elif event == "scaled":
            with run.calling("torch.amp.GradScaler.step"):
                run.call("torch.optim.Adam.step", object=STEPS[event])
        elif event in STEPS:
            exception = "ValueError" if event == "failed" else ""
            run.call("torch.optim.Adam.step", object=STEPS[event], exception=exception)
        else:
            run.call(CALLS[event])
    windows.append(run.window())
    return windows


def _reference(events: Sequence[str], kind: str, number: int | None) -> list[Label]:
    """Label the steps of a run in which calls of *kind* are counted, event by event."""
    found: list[Label] = []
    since: dict[str, int] = {}
    usual: dict[str, list[int]] = {}
    was_short: set[str] = set()
    went_backward = False
    clock = 0
    for event in events:
        begin = clock + (2 if event == "scaled" else 1)
        clock += {"gap": 0, "scaled": 4}.get(event, 2)
        if event == "gap":
            since.clear()
            was_short.clear()
        if event == kind and (kind != "scheduler" or went_backward):
            since = {target: count + 1 for target, count in since.items()}
        if event == "scheduler":
            went_backward = False
        elif event == "backward":
            went_backward = True
        if event == "skip" and kind != "scheduler":
            since = dict.fromkeys(since, 0)
        if event not in STEPS or event == "failed":
            continue
        target = STEPS[event]
        count = since.get(target)
        since[target] = 0
        if count is None:
            continue
        expected = number
        if expected is None:
            first = usual.setdefault(target, [])
            if len(first) < 2:
                first.append(count)
                continue
            if not min(first):
                # Now and then only.
                continue
            expected = max(first)
        is_right = count == expected or (count < expected and target not in was_short)
        found.append((begin, is_right))
        was_short = was_short | {target} if count < expected else was_short - {target}
    return found


events = st.lists(
    st.sampled_from(["backward", "backward", "step", "step", "other", "scaled", "failed", "clip"])
    | st.sampled_from(["scheduler", "skip", "gap"]),
    max_size=40,
)
cuts = st.sets(st.integers(0, 40), max_size=8)
counted = st.sampled_from([("backward", BACKWARD), ("scheduler", SCHEDULER), ("clip", CLIP)])


@given(events, cuts, counted, st.none() | st.integers(1, 3))
def test_counts_are_judged_as_the_formula_says(
    told: list[str], cut: set[int], what: tuple[str, APIParam], number: int | None
) -> None:
    kind, api = what
    constant = () if number is None else (ConstantParam(value=number),)
    found = labels(RELATION, (STEP, api, *constant), _windows(told, sorted(cut)))
    assert found == _reference(told, kind, number)


def _holds(told: str, *params: Param) -> list[bool]:
    return [holds for _, holds in labels(RELATION, (STEP, *params), _windows(told.split()))]


FULL, HALF = "backward backward step ", "backward step "


def test_the_first_cycles_settle_the_number() -> None:
    assert SETTLING_CYCLES == 2
    # The first step ends no cycle, two cycles settle, the longer of them is the number.
    assert _holds(FULL * 3, BACKWARD) == []
    assert _holds(FULL * 5, BACKWARD) == [True, True]
    assert _holds(HALF + FULL + HALF + FULL + HALF + FULL, BACKWARD) == [True] * 3
    assert _holds(HALF * 3 + FULL, BACKWARD) == [False]
    assert _holds(HALF + FULL, BACKWARD, TWO) == [True]


def test_one_short_accumulation_is_fine_and_two_in_a_row_are_not() -> None:
    settled = FULL * 3
    assert _holds(settled + HALF + FULL + HALF + FULL, BACKWARD) == [True] * 4
    assert _holds(settled + HALF * 3 + FULL, BACKWARD) == [True, False, False, True]
    assert _holds(settled + HALF + "backward " + FULL + HALF, BACKWARD) == [True, False, True]


def test_a_stretch_that_was_not_observed_ends_what_was_counted() -> None:
    # Neither the calls before it nor a short window before it count.
    assert _holds(HALF + "backward gap backward step", BACKWARD, TWO) == []
    assert _holds(HALF * 2 + "gap " + HALF * 2, BACKWARD, TWO) == [True, True]
    # What was settled stays.
    assert _holds(FULL * 3 + "gap " + FULL * 2, BACKWARD) == [True]


def test_a_step_that_the_scaler_skipped_counts_for_backward_and_not_for_schedulers() -> None:
    scaled, skipped = "backward scaled ", "backward skip "
    assert _holds(scaled + skipped + scaled, BACKWARD, ONE) == [True]
    assert _holds(scaled + "backward " + scaled, BACKWARD, ONE) == [False]
    assert _holds(scaled + skipped + "scheduler " + scaled + "scheduler", SCHEDULER, ONE) == [True]
    moved = "scheduler " + skipped + "scheduler "
    assert _holds(scaled + moved + scaled, SCHEDULER, ONE) == [False]


def test_a_burst_of_scheduler_calls_counts_once() -> None:
    cycle = "backward step scheduler "
    assert _holds(cycle + cycle, SCHEDULER, ONE) == [True]
    assert _holds((cycle + "scheduler scheduler ") * 3, SCHEDULER, ONE) == [True, True]
    # With a backward in between they are two.
    apart = "backward scheduler backward scheduler step "
    assert _holds(apart * 2, SCHEDULER, ONE) == [False]
    assert _holds(apart * 2, SCHEDULER, TWO) == [True]
    # Clipping twice is clipping twice.
    assert _holds("backward clip clip step " * 2, CLIP, ONE) == [False]


def _explained(told: str, *params: Param) -> Explanation:
    monitor = RELATION.monitor((STEP, *params))
    (window,) = _windows(told.split())
    examples = monitor.observe(window)
    return examples.explain(examples.holds.tolist().index(False))


@pytest.mark.parametrize(
    ("told", "params", "message", "text"),
    [
        (
            FULL * 3 + HALF * 2,
            (BACKWARD,),
            "Tensor.backward was called once for one Adam.step, expected 2 times",
            "before their micro-batches are complete",
        ),
        (
            HALF * 3 + FULL,
            (BACKWARD,),
            "Tensor.backward was called 2 times for one Adam.step, expected once",
            "more micro-batches than before add up",
        ),
        (
            HALF * 3,
            (SCHEDULER, ONE),
            "LRScheduler.step was not called for one Adam.step, expected once",
            "the scheduler is not stepped",
        ),
        (
            "backward scheduler backward scheduler step " * 2,
            (SCHEDULER, ONE),
            "LRScheduler.step was called 2 times for one Adam.step, expected once",
            "runs through its schedule too fast",
        ),
        (
            HALF * 3,
            (CLIP, ONE),
            "clip_grad_norm_ was not called for one Adam.step, expected once",
            "called less often than in a healthy run",
        ),
        (
            "clip clip step " * 2,
            (CLIP, ONE),
            "clip_grad_norm_ was called 2 times for one Adam.step, expected once",
            "called more often than in a healthy run",
        ),
    ],
)
def test_the_explanation_says_how_often_and_what_follows(
    told: str, params: tuple[Param, ...], message: str, text: str
) -> None:
    explanation = _explained(told, *params)
    assert explanation.message == message
    assert explanation.cause is not None
    assert text in explanation.cause.text
    (subject,) = explanation.cause.subjects
    assert explanation.cause.fact == f"calls of {subject} for each step"
    assert message.startswith(subject)


def _proposed(windows: Sequence[Window]) -> list[Hypothesis]:
    proposer = RELATION.proposer()
    for window in windows:
        proposer.observe(window)
    return list(proposer.hypotheses())


def test_the_greatest_count_is_proposed() -> None:
    cycle = "backward clip step scheduler "
    told = (cycle * 2 + "backward " + cycle + "clip " + cycle * 2).split()
    # In one window the count is greater than in those before and after.
    assert {h.params for h in _proposed(_windows(told, [3, 10, 18]))} == {
        (STEP, BACKWARD),
        (STEP, SCHEDULER, ONE),
        (STEP, CLIP, TWO),
    }


@pytest.mark.parametrize(
    "told",
    [
        "backward step",
        "backward clip backward clip",
        "backward clip step gap backward clip step",
        "step step",
        "backward clip failed backward clip failed",
    ],
)
def test_without_a_cycle_that_has_calls_nothing_is_proposed(told: str) -> None:
    assert _proposed(_windows(told.split())) == []


@given(events.map(lambda told: [event for event in told if event != "gap"]))
def test_what_is_proposed_is_what_the_formula_says(told: list[str]) -> None:
    counts = {api: max(_counts(told, api), default=0) for api in (SCHEDULER, CLIP)}
    found = {h.params for h in _proposed(_windows(told)) if len(h.params) == 3}
    assert found == {
        (STEP, api, ConstantParam(value=most)) for api, most in counts.items() if most > 0
    }


def _counts(told: Sequence[str], api: Param) -> list[int]:
    """Return the counts of all cycles of a run."""
    kind = "scheduler" if api == SCHEDULER else "clip"
    found = []
    since: dict[str, int] = {}
    went_backward = False
    for event in told:
        if event == kind and (kind != "scheduler" or went_backward):
            since = {target: count + 1 for target, count in since.items()}
        went_backward = event == "backward" or (went_backward and event != "scheduler")
        if event == "skip" and kind != "scheduler":
            since = dict.fromkeys(since, 0)
        if event in STEPS and event != "failed":
            if STEPS[event] in since:
                found.append(since[STEPS[event]])
            since[STEPS[event]] = 0
    return found


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "once", None, (1,)])
def test_a_number_that_is_no_count_is_refused(number: object) -> None:
    with pytest.raises(InvariantError, match="CallCountRelation needs a number of calls, got"):
        RELATION.monitor((STEP, BACKWARD, ConstantParam(value=number)))


@pytest.mark.parametrize(
    "params",
    [
        (),
        (STEP,),
        (STEP, ONE),
        (ONE, STEP, BACKWARD),
        (STEP, BACKWARD, CLIP),
        (STEP, BACKWARD, ONE, ONE),
        (STEP, VarTypeParam(var_type="torch.nn.Parameter", attr_name="data")),
    ],
)
def test_parameters_of_another_relation_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="CallCountRelation expects the parameters APIParam"):
        RELATION.monitor(params)


def test_a_file_keeps_what_was_proposed(tmp_path: Path) -> None:
    windows = _windows(("backward backward clip step scheduler " * 4).split(), [3, 9])
    written = [
        Invariant(
            relation=h.relation,
            params=h.params,
            severity=RELATION.severity(h.params),
            scope="universal",
            text_description=RELATION.describe(h.params),
        )
        for h in _proposed(windows)
    ]
    assert {invariant.text_description for invariant in written} == {
        "Tensor.backward is called equally often for each Optimizer.step",
        "LRScheduler.step is called once for each Optimizer.step",
        "clip_grad_norm_ is called once for each Optimizer.step",
    }
    dump_invariants(written, tmp_path / "rules.jsonl")
    read = load_invariants(tmp_path / "rules.jsonl", {RELATION.name})
    assert read == tuple(written)
    for invariant in read:
        assert all(holds for _, holds in labels(RELATION, invariant.params, windows))
