"""What operations take together and leave out, against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, Param
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.losses import BACKWARD, FIRST, MAX_WAYS, MIN_BACKWARDS
from traincheck_plugin.relations.operation_settings import (
    MAX_UNMASKED,
    OperationSettingsRelation,
)
from traincheck_plugin.vocabulary import NOWHERE, Item, Variable

RELATION = OperationSettingsRelation()
LAW: tuple[Param, ...] = (BACKWARD,)
SUMS: tuple[Param, ...] = (replace(BACKWARD, argument="summed"),)
MIXES: tuple[Param, ...] = (replace(BACKWARD, argument="mixes"),)
PICKED: tuple[Param, ...] = (replace(BACKWARD, argument="picked"),)
REPEATED: tuple[Param, ...] = (replace(BACKWARD, argument="repeated"),)
FLAT: tuple[Param, ...] = (replace(BACKWARD, argument="flat"),)
PADDING: tuple[Param, ...] = (replace(BACKWARD, argument="padding"),)
ENTROPY = "nll_loss.ignored=-100 softmax.dimension=-1"
BOTH = "attention.masked=no attention.masked=yes"
MASKED, UNMASKED = "attention.masked=yes", "attention.masked=no"


def _known(*settings: str, after: str = "Net") -> tuple[Param, ...]:
    return BACKWARD, ConstantParam(value=(after, *settings))


def _backward(run: RunBuilder, settings: str, model: str = "Net") -> None:
    run.parameters("weight", owner=f"__main__.{model}#0")
    run.call(f"__main__.{model}.forward", object=f"__main__.{model}#0")
    items = [Item(path="settings", type="str", value=settings)] * bool(settings)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(settings: Sequence[str], cuts: Sequence[int] = ()) -> list[Window]:
    return told([lambda run, s=s: _backward(run, s) for s in settings], cuts)


def _held(params: tuple[Param, ...], settings: Sequence[str]) -> list[bool]:
    windows = _windows(settings, range(1, len(settings)))
    return [holds for _, holds in labels(RELATION, params, windows)]


def _failure(params: tuple[Param, ...], settings: str) -> Explanation:
    [window] = _windows([settings] * (MAX_UNMASKED + 1))
    examples = RELATION.monitor(params).observe(window)
    return examples.explain(examples.holds.tolist().index(False))


OTHER = ENTROPY.replace("-100", "0")


@given(st.lists(st.sampled_from([ENTROPY, OTHER, MASKED, UNMASKED, "mean.dimension=-1", ""])))
def test_another_setting_is_told_when_it_stays(settings: list[str]) -> None:
    expected: list[bool] = []
    num_other = num_unmasked = 0
    for one in filter(None, settings):
        num_other = num_other + 1 if one == OTHER else 0
        num_unmasked = num_unmasked + 1 if one == UNMASKED else 0
        if num_other > 1 or num_unmasked > MAX_UNMASKED:
            expected.append(False)
        elif not num_other and not num_unmasked:
            expected.append(True)
    # Operations that the reference had not are not judged.
    assert _held(_known(f"{ENTROPY} {MASKED}"), settings) == expected


@pytest.mark.parametrize(
    ("known", "settings", "holds"),
    [
        ([MASKED], UNMASKED, False),
        ([BOTH], UNMASKED, False),
        # Batches without padding need no mask, and others do.
        ([MASKED, UNMASKED], UNMASKED, True),
        ([UNMASKED], MASKED, True),
        ([MASKED], BOTH, False),
        ([MASKED, BOTH], BOTH, True),
        ([UNMASKED], BOTH, True),
        ([BOTH], MASKED, True),
        (["mean.dimension=-1"], "mean.dimension=-2", False),
        ([f"{MASKED} self_{MASKED}"], f"{MASKED} self_{UNMASKED}", True),
        (["mean.dimension=-1"], "mean.dimension=-1 mean.dimension=-2", False),
        (["mean.dimension=-1", "mean.dimension=-2"], "mean.dimension=-2", True),
        (["mean.dimension=-1"], "sum.dimension=-2", True),
        (["mean.dimension=-1 mean.other=1"], "mean.dimension=-1 mean.other=2", True),
        ([ENTROPY], ENTROPY.replace("-1", "-2"), False),
    ],
)
def test_what_another_setting_is(known: list[str], settings: str, holds: bool) -> None:
    held = _held(_known(*known), [settings] * (MAX_UNMASKED + 1))
    assert (False not in held) is holds


def _lagging(settings: str, lag: float, operation: str = "nll_loss") -> list[Window]:
    run = RunBuilder()
    rows = run.variables(
        *(
            Variable(kind="target", name=name, owner="__main__.Net#0", type=operation)
            for name in ("tokens", "places")
        )
    )
    run.parameters("weight", owner="__main__.Net#0")
    windows = []
    for _ in range(2):
        run.call("__main__.Net.forward", object="__main__.Net#0")
        items = [Item(path="settings", type="str", value=settings)] * bool(settings)
        with run.calling("torch.Tensor.backward", role="backward", inputs=items):
            run.frame("begin", rows, value=[math.nan, lag])
        windows.append(run.window())
    return windows


@pytest.mark.parametrize(
    ("settings", "lag", "operation", "expected"),
    [
        (MASKED, 1, "nll_loss", [True] * 2),
        (BOTH, 1, "nll_loss", [True] * 2),
        (UNMASKED, 1, "nll_loss", [False] * 2),
        (UNMASKED, 3, "nll_loss2d", [False] * 2),
        # What is copied, is somewhere else, or comes before is no prediction of what follows.
        (UNMASKED, 0, "nll_loss", []),
        (UNMASKED, -1, "nll_loss", []),
        (UNMASKED, NOWHERE, "nll_loss", []),
        (UNMASKED, math.nan, "nll_loss", []),
        # Attention may go over series in place of times.
        (UNMASKED, 1, "mse_loss", []),
        (ENTROPY, 1, "nll_loss", []),
        ("", 1, "nll_loss", []),
    ],
)
def test_predictions_of_what_follows_need_a_mask(
    settings: str, lag: float, operation: str, expected: list[bool]
) -> None:
    own = settings.replace("attention", "self_attention")
    windows = _lagging(f"{settings} {own}", lag, operation)
    assert [holds for _, holds in labels(RELATION, LAW, windows)] == expected


@pytest.mark.parametrize(
    ("hides", "leak"),
    [
        (["later"], ""),
        (["later", "keys"], ""),
        (["some"], ""),
        (["unknown", "keys"], ""),
        (["keys"], "no mask of attention hides what comes later"),
        (["earlier"], "the mask of attention hides what comes earlier"),
        (["earlier", "keys"], "the mask of attention hides what comes earlier"),
    ],
)
def test_what_follows_has_to_be_hidden(hides: list[str], leak: str) -> None:
    told = "self_attention.masked=yes " + " ".join(f"self_attention.hides={one}" for one in hides)
    windows = _lagging(told, 1)
    assert [holds for _, holds in labels(RELATION, LAW, windows)] == [not leak] * 2
    if leak:
        explanation = RELATION.monitor(LAW).observe(windows[0]).explain(0)
        assert explanation.message.endswith(f"targets come later in the input, and {leak}")
        assert explanation.cause is not None
        assert "or the mask is inverted" in explanation.cause.text


@pytest.mark.parametrize(
    ("known", "now", "is_told"),
    [
        (["last"], ["first"], True),
        (["first"], ["last"], True),
        (["last"], ["last"], False),
        (["last"], ["first", "last"], False),
        (["first", "last"], ["first"], False),
        (["last"], [], False),
        ([], ["first"], False),
    ],
)
def test_hiding_the_other_end_of_samples_is_told(
    known: list[str], now: list[str], is_told: bool
) -> None:
    def settings(sides: list[str]) -> str:
        return " ".join(["attention.masked=yes", *(f"attention.side={side}" for side in sides)])

    held = _held(_known(settings(known)), [settings(now)] * 3)
    assert held == ([False] * 2 if is_told else [True] * 3)
    if is_told:
        explanation = _failure(_known(settings(known)), settings(now))
        assert explanation.message == (
            f"in the loss of Net, attention hides the {now[0]} keys of samples; in the reference "
            f"the {known[0]} ones"
        )
        assert explanation.cause is not None
        assert "inverted" in explanation.cause.text


@pytest.mark.parametrize(
    ("law", "name", "right"),
    [
        (SUMS, "attention.summed", "yes"),
        (MIXES, "reshape.mixes", "no"),
        (PICKED, "log_softmax.picked", "yes"),
        (REPEATED, "loss.repeated", "no"),
        (FLAT, "loss.flat", "no"),
        (PADDING, "attention.padding", "hidden"),
    ],
)
@given(told=st.lists(st.sampled_from(["", "right", "wrong", "both"]), max_size=8))
def test_what_is_wrong_everywhere_is_told_when_it_stays(
    law: tuple[Param, ...], name: str, right: str, told: list[str]
) -> None:
    wrong = {"yes": "no", "no": "yes", "hidden": "shown"}[right]
    texts = {
        "right": f"{name}={right}",
        "wrong": f"{name}={wrong}",
        "both": " ".join(sorted([f"{name}={right}", f"{name}={wrong}"])),
        "": ENTROPY,
    }
    expected, failed = [], 0
    for one in filter(None, told):
        failed = 0 if one == "right" else failed + 1
        if failed != 1:
            expected.append(one == "right")
    assert _held(law, [texts[one] for one in told]) == expected


@pytest.mark.parametrize(
    ("law", "wrong", "message", "cause", "sentence"),
    [
        (
            SUMS,
            "attention.summed=no",
            "attention sums up values along another dimension than its softmax goes over",
            "its softmax goes over another dim",
            "over which its softmax goes",
        ),
        (
            MIXES,
            "reshape.mixes=yes",
            "a reshape takes elements of one axis for those of another",
            "a permute or a transpose is missing",
            "splits and merges axes",
        ),
        (
            PICKED,
            "log_softmax.picked=no",
            "classes are picked along another dimension than their log_softmax goes over",
            "in place of the classes",
            "classes are picked along the dimension",
        ),
        (
            REPEATED,
            "loss.repeated=yes",
            "a loss compares the same with the same twice",
            "the transposed scores",
            "the same with the same twice",
        ),
        (
            FLAT,
            "loss.flat=yes",
            "all gradients of the loss are zeros: it is computed of what is rounded alone",
            "round, floor",
            "rounded alone",
        ),
        (
            PADDING,
            "attention.padding=shown",
            "attention hides one end of samples, and these are padded at the other",
            "is inverted",
            "hides that with the padding",
        ),
    ],
)
def test_it_is_told_why_it_is_wrong(
    law: tuple[Param, ...], wrong: str, message: str, cause: str, sentence: str
) -> None:
    explanation = _failure(law, wrong)
    assert explanation.message == f"in the loss of Net, {message}"
    assert explanation.cause is not None
    assert cause in explanation.cause.text
    assert "{" not in explanation.cause.text
    assert sentence in RELATION.describe(law)
    # What models are given is kept where somebody asks what losses have to do with it.
    kept = {"backward": frozenset({("target", "value")})} if law == PADDING else {}
    assert RELATION.needs(law).attributes == kept


def test_laws_are_proposed_where_they_say_something() -> None:
    def proposed(settings: str) -> set[tuple[Param, ...]]:
        proposer = RELATION.proposer()
        for window in _windows([settings]):
            proposer.observe(window)
        return {hypothesis.params for hypothesis in proposer.hypotheses()}

    assert proposed(ENTROPY) == set()
    assert proposed("attention.summed=yes") == {SUMS}
    assert proposed("reshape.mixes=no log_softmax.picked=yes") == {MIXES, PICKED}
    assert proposed("loss.repeated=no loss.flat=no") == {REPEATED, FLAT}
    assert proposed("attention.summed=yes self_attention.masked=yes") == {LAW, SUMS}
    assert proposed("attention.padding=hidden attention.side=last") == {PADDING}


def test_what_attention_sees_is_told() -> None:
    explanation = (
        RELATION.monitor(LAW).observe(_lagging("self_attention.masked=no", 1)[0]).explain(0)
    )
    assert explanation.message == (
        "in the loss of Net, targets come later in the input, and no attention has a mask"
    )
    assert explanation.cause is not None
    assert "positions see the targets" in explanation.cause.text
    assert RELATION.needs(LAW).attributes == {"backward": frozenset({("target", "value")})}
    assert "has a mask" in RELATION.describe(LAW)


def test_only_the_first_losses_of_each_run_are_judged() -> None:
    late = [OTHER] * (MAX_UNMASKED + 1)
    assert all(_held(_known(ENTROPY), [ENTROPY] * FIRST + late))
    assert not all(_held(_known(ENTROPY), [ENTROPY] * (FIRST - len(late)) + late))


def test_losses_after_other_models_are_others() -> None:
    run = RunBuilder()
    for _ in range(MAX_UNMASKED + 1):
        _backward(run, OTHER, "Critic")
    window = run.window()
    assert len(RELATION.monitor(_known(ENTROPY)).observe(window)) == 0
    assert not RELATION.monitor(_known(ENTROPY, after="Critic")).observe(window).holds.all()


@pytest.mark.parametrize(
    ("known", "settings", "message", "cause"),
    [
        (
            MASKED,
            UNMASKED,
            "no attention has a mask; in the reference every attention has",
            "the mask, is_causal or the lengths of samples are missing",
        ),
        (
            MASKED,
            BOTH,
            "not every attention has a mask; in the reference every attention has",
            "the mask, is_causal or the lengths of samples are missing",
        ),
        (
            BOTH,
            UNMASKED,
            "no attention has a mask; in the reference not every attention has",
            "the mask, is_causal or the lengths of samples are missing",
        ),
        (
            "softmax.dimension=-1",
            "softmax.dimension=-2",
            "softmax goes over dimension -2; in the reference over -1",
            "its dim is another one",
        ),
        (
            ENTROPY,
            OTHER,
            "nll_loss leaves out targets of 0; in the reference of -100",
            "ignore_index of nll_loss is not what",
        ),
        (
            "self_attention.hides=later",
            "self_attention.hides=earlier",
            "the mask of self_attention hides earlier; in the reference later",
            "the mask of self_attention is inverted",
        ),
    ],
)
def test_what_is_different_is_told(known: str, settings: str, message: str, cause: str) -> None:
    explanation = _failure(_known(known), settings)
    assert explanation.message == f"in the loss of Net, {message}"
    assert explanation.cause is not None
    assert cause in explanation.cause.text
    assert "{" not in explanation.cause.text


def _proposed(windows: Sequence[Window]) -> set[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in windows:
        proposer.observe(window)
    return {hypothesis.params for hypothesis in proposer.hypotheses()}


def test_what_a_reference_shows_is_proposed() -> None:
    own = "self_attention.masked=yes"
    assert _proposed(_windows([ENTROPY, own] * (MIN_BACKWARDS // 2))) == {
        LAW,
        _known(ENTROPY, own),
    }
    # Attention to another sequence needs no mask, and says nothing of what needs one.
    assert _proposed(_windows([MASKED] * MIN_BACKWARDS)) == {_known(MASKED)}
    assert _proposed(_windows([ENTROPY] * (MIN_BACKWARDS - 1))) == set()
    many = [f"mean.dimension=-{number}" for number in range(MAX_WAYS + 1)]
    assert _proposed(_windows(many * 2)) == set()


@pytest.mark.parametrize(
    "params",
    [
        (),
        (BACKWARD, BACKWARD),
        (APIParam(api_full_name="torch.Tensor.backward"), ConstantParam(value=("Net", ENTROPY))),
        (BACKWARD, ConstantParam(value=("Net",))),
        (BACKWARD, ConstantParam(value=3)),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the backward"):
        RELATION.monitor(params)


def test_the_rule_is_a_sentence() -> None:
    assert RELATION.describe(_known(ENTROPY, MASKED)) == (
        "the operations that compute the loss of Net are set as they were: attention.masked yes, "
        "nll_loss.ignored -100, softmax.dimension -1"
    )
    assert RELATION.severity(_known(ENTROPY)) == "warning"
