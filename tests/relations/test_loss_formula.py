"""How a loss is computed, against that of the reference and against what no loss does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, Param
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.loss_formula import (
    FLOWING,
    HIDING,
    LOGARITHMED,
    LOGARITHMIC_INPUT,
    LOGITS,
    SHAPED,
    SIGNED,
    LossFormulaRelation,
)
from traincheck_plugin.relations.losses import BACKWARD, FIRST, MAX_WAYS, MIN_BACKWARDS
from traincheck_plugin.vocabulary import Item

RELATION = LossFormulaRelation()
ENTROPY = "log_softmax(layer) nll_loss(log_softmax)"
SQUASHED = "log_softmax(softmax) nll_loss(log_softmax) softmax(layer)"
SQUARES = "mse_loss(layer)"
BOTH = f"{ENTROPY} {SQUARES} sub(mse_loss,nll_loss)"


def _known(*formulas: str, after: str = "Net") -> tuple[Param, ...]:
    return BACKWARD, ConstantParam(value=(after, *formulas))


def _backward(run: RunBuilder, formula: str, model: str = "Net") -> None:
    run.parameters("weight", owner=f"__main__.{model}#0")
    run.call(f"__main__.{model}.forward", object=f"__main__.{model}#0")
    run.call("torch.nn.modules.loss.MSELoss.forward", object="torch.nn.modules.loss.MSELoss#0")
    items = [Item(path="formula", type="str", value=formula)] * bool(formula)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(formulas: Sequence[str], cuts: Sequence[int] = ()) -> list[Window]:
    return told([lambda run, f=f: _backward(run, f) for f in formulas], cuts)


def _held(params: tuple[Param, ...], formulas: Sequence[str]) -> list[bool]:
    windows = _windows(formulas, range(1, len(formulas)))
    return [holds for _, holds in labels(RELATION, params, windows)]


def _failure(params: tuple[Param, ...], formula: str) -> Explanation:
    [window] = _windows([formula] * 2)
    examples = RELATION.monitor(params).observe(window)
    return examples.explain(examples.holds.tolist().index(False))


texts = st.lists(st.sampled_from([ENTROPY, SQUASHED, SQUARES, BOTH, ""]), max_size=12)


@given(texts)
def test_another_loss_is_told_when_it_comes_twice(formulas: list[str]) -> None:
    expected, has_failed = [], False
    for formula in formulas:
        if formula:
            held = formula in (ENTROPY, SQUARES)
            if held or has_failed:
                expected.append(held)
            has_failed = not held
    assert _held(_known(ENTROPY, SQUARES), formulas) == expected


@given(texts)
def test_what_is_squashed_twice(formulas: list[str]) -> None:
    expected = [formula != SQUASHED for formula in formulas if formula not in (SQUARES, "")]
    assert _held((BACKWARD,), formulas) == expected


def test_a_log_softmax_by_hand_is_one() -> None:
    # As Categorical(logits=...) normalises what it is given.
    by_hand = "neg(gather) gather(sub) logsumexp({0}) sub({1}) softmax(layer)"
    twice = by_hand.format("softmax", "logsumexp,softmax")
    once = by_hand.format("layer", "layer,logsumexp")
    other = by_hand.format("softmax", "layer,logsumexp")
    assert _held((BACKWARD,), [once, twice, other]) == [True, False, True]
    assert _failure((BACKWARD,), twice).message == (
        "the loss applies log_softmax to the result of softmax"
    )


def test_predictions_and_targets_that_are_broadcast() -> None:
    broadcast = "mse_loss(broadcast,constant,layer)"
    assert _held((SHAPED,), [SQUARES, broadcast, ENTROPY, broadcast]) == [True, False, False]
    by_hand = "mean[2d](pow) pow(sub) sub(broadcast,constant,layer)"
    difference = _failure((SHAPED,), by_hand)
    assert difference.message == "the difference compares each prediction with each target"
    assert _held((SHAPED,), [by_hand.replace("broadcast,", "")]) == [True]
    explanation = _failure((SHAPED,), broadcast)
    assert explanation.message == "mse_loss compares each prediction with each target"
    assert explanation.cause is not None
    assert "the model learns the mean" in explanation.cause.text
    product = "mean[2d](mul) mul(broadcast,constant,gather) gather(log_softmax) log_softmax(layer)"
    assert _failure((SHAPED,), product).message == (
        "the loss multiplies each prediction with the label or weight of each sample"
    )
    assert _held((SHAPED,), [product.replace("broadcast,", "")]) == [True]
    # The pipeline's own rule says so, too.
    assert _held((SIGNED, _known(SQUARES)[1]), [SQUARES, broadcast, broadcast]) == [True, False]


@pytest.mark.parametrize(
    ("formula", "held"),
    [
        ("nll_loss(layer)", [False]),
        ("mean[1d](nll_loss2d) nll_loss2d(relu) relu(layer)", [False]),
        ("ctc_loss(layer)", [False]),
        (ENTROPY, [True]),
        ("log(add) nll_loss(log)", [True]),
        # What a function hides may take logarithms.
        ("nll_loss(checkpoint_function)", [True]),
        (SQUARES, []),
    ],
)
def test_losses_of_logarithms_are_not_given_logits(formula: str, held: list[bool]) -> None:
    assert _held((LOGARITHMIC_INPUT,), [formula]) == held
    if held == [False]:
        explanation = _failure((LOGARITHMIC_INPUT,), formula)
        assert explanation.message.startswith("the loss applies ")
        assert explanation.cause is not None
        assert "a log_softmax is missing, and the loss has no lower bound" in explanation.cause.text


@pytest.mark.parametrize(
    ("formula", "held"),
    [
        ("log_softmax(relu) nll_loss(log_softmax) relu(layer)", [False]),
        ("binary_cross_entropy_with_logits(constant,hardtanh) hardtanh(layer)", [False]),
        ("log_softmax(leaky_relu) nll_loss(log_softmax) leaky_relu(layer)", [True]),
        (ENTROPY, [True]),
        ("mse_loss(constant,relu) relu(layer)", []),
    ],
)
def test_logits_are_not_cut_off(formula: str, held: list[bool]) -> None:
    assert _held((LOGITS,), [formula]) == held
    if held == [False]:
        explanation = _failure((LOGITS,), formula)
        assert explanation.message.startswith("the loss applies ")
        assert explanation.cause is not None
        assert "cuts off those below zero" in explanation.cause.text


TERMS = "add(log,mul) log(layer) mul(layer) sum[1d](add)"


def test_predictions_and_targets_that_change_places_are_told() -> None:
    known = "maximum(sub,sub) sub(constant,layer)"
    turned = known.replace("sub", "rsub")
    assert _held((SIGNED, _known(known)[1]), [known, turned, turned]) == [True, False]


@pytest.mark.parametrize(
    ("formula", "is_alike"),
    [
        (TERMS.replace("add", "sub"), True),
        (TERMS.replace("1d", "2d"), True),
        (TERMS.replace("add(log,mul)", "add(mul,neg) neg(log)"), True),
        (f"neg(sum[1d]) {TERMS}", True),
        (TERMS.replace("log", "exp"), False),
        (TERMS.replace("add(log,mul)", "add(abs,add) add(log,mul) abs(layer)"), False),
    ],
)
def test_signs_and_dimensions_are_no_matter_of_taste(formula: str, is_alike: bool) -> None:
    signed = SIGNED, _known(TERMS)[1]
    assert _held(signed, [TERMS, formula, formula]) == [True, False][: 1 + is_alike]
    assert _held(_known(TERMS), [TERMS, formula, formula]) == [True, False]
    assert RELATION.severity(signed) == RELATION.severity((BACKWARD,)) == "warning"
    assert RELATION.severity(_known(TERMS)) == "info"


TWO = "add(l1_loss,mul) l1_loss(constant,layer) mul(mse_loss) mse_loss(layer)"
SCALED = "mul(constant,log) log(layer) add(constant,mul)"


@pytest.mark.parametrize(
    ("known", "formula", "is_alike"),
    [
        (TWO, "add(constant,l1_loss) l1_loss(constant,layer)", True),
        (TWO, TWO.replace("l1_loss(constant,layer)", "l1_loss(exp,layer) exp(layer)"), True),
        (TWO, TWO.replace("l1_loss(constant,layer)", "l1_loss(layer,layer)"), True),
        # Others that take constants hide none that does no longer.
        (SCALED, SCALED.replace("mul(constant,log)", "mul(log,sub) sub(constant,layer)"), True),
        (SCALED, SCALED.replace("mul(constant,log)", "mul(log,log)"), True),
        # A term that is left out, or added, or taken with another sign is another matter.
        (TWO, "l1_loss(constant,layer)", False),
        (TWO, TWO.replace("l1_loss(constant,layer)", "l1_loss(layer)"), False),
        (TWO, TWO.replace("add(l1_loss,mul)", "add(add,abs) add(l1_loss,mul) abs(layer)"), False),
        (TWO, TWO.replace("add", "sub"), False),
        (TWO, "sub(constant,l1_loss) l1_loss(constant,layer)", False),
    ],
)
def test_what_gradients_go_to_is_no_matter_of_taste(
    known: str, formula: str, is_alike: bool
) -> None:
    flowing, signed = (FLOWING, _known(known)[1]), (SIGNED, _known(known)[1])
    assert _held(flowing, [known, formula, formula]) == [True, False][: 1 + is_alike]
    assert _held(signed, [known, formula, formula])[:1] == [True]
    assert not is_alike or all(_held(signed, [known, formula, formula]))
    assert RELATION.severity(flowing) == "warning"


@pytest.mark.parametrize(
    ("known", "formula", "is_alike"),
    [
        ("mul(constant,log_softmax) log_softmax(layer)", "mul(constant,softmax) softmax(layer)", 1),
        ("add(log_sigmoid) log_sigmoid(layer)", "add(sigmoid) sigmoid(layer)", 1),
        ("add(sigmoid) sigmoid(layer)", "add(log_sigmoid) log_sigmoid(layer)", 1),
        # That is the same, spelled out; and that is another loss.
        ("add(log_softmax) log_softmax(layer)", "add(log) log(softmax) softmax(layer)", 0),
        ("add(log_softmax) log_softmax(layer)", "add(sigmoid) sigmoid(layer)", 0),
    ],
)
def test_logarithms_of_probabilities_are_no_matter_of_taste(
    known: str, formula: str, is_alike: int
) -> None:
    about = (LOGARITHMED, _known(known)[1])
    assert _held(about, [known, formula, formula]) == [True, False][: 1 + is_alike]
    assert RELATION.severity(about) == "warning"
    assert RELATION.describe(about).startswith("logarithms of probabilities stay")


FILLED = "log_softmax(masked_fill) masked_fill(div) div(layer) nll_loss(log_softmax)"
WEIGHTED = "neg(sum[1d]) sum[1d](mul) mul(constant,gather) gather(log_softmax) log_softmax(layer)"


@pytest.mark.parametrize(
    ("known", "formula", "is_alike"),
    [
        (FILLED, "log_softmax(div) div(layer) nll_loss(log_softmax)", 1),
        (WEIGHTED, WEIGHTED.replace("sum[1d](mul) mul(constant,gather)", "sum[1d](gather)"), 1),
        # What is no longer dropped out was not summed up.
        (
            "nll_loss(log_softmax) log_softmax(mul) mul(constant,layer)",
            "nll_loss(log_softmax) log_softmax(layer)",
            0,
        ),
        # More may be hidden on purpose; a product of two results hides nothing.
        ("log_softmax(div) div(layer) nll_loss(log_softmax)", FILLED, 0),
        (WEIGHTED, WEIGHTED.replace("mul(constant,gather)", "mul(gather,gather)"), 0),
        (WEIGHTED, WEIGHTED.replace("sum[1d](mul) mul(constant,gather)", "sum[1d](exp)"), 0),
    ],
)
def test_what_a_mask_hides_is_no_matter_of_taste(known: str, formula: str, is_alike: int) -> None:
    about = (HIDING, _known(known)[1])
    assert _held(about, [known, formula, formula]) == [True, False][: 1 + is_alike]
    assert RELATION.severity(about) == "warning"
    assert RELATION.describe(about).startswith("what masks and factors hide stays hidden")
    if is_alike:
        explanation = _failure(about, formula)
        assert explanation.cause is not None
        assert explanation.cause.text.endswith("counts in full")


def test_what_no_longer_gives_gradients_or_gives_them_now_is_told() -> None:
    cut = _failure((FLOWING, _known(TWO)[1]), "add(constant,l1_loss) l1_loss(constant,layer)")
    assert cut.message == (
        "a term of the loss of Net gives no gradient, in add, and does in the reference"
    )
    assert cut.cause is not None
    assert "under no_grad, was detached, or has a weight of 0" in cut.cause.text
    target = _failure(
        (FLOWING, _known(TWO)[1]), TWO.replace("l1_loss(constant,layer)", "l1_loss(layer,layer)")
    )
    assert target.message == (
        "a term of the loss of Net gives a gradient, in l1_loss, and does not in the reference"
    )
    assert target.cause is not None
    assert "is not detached" in target.cause.text


def test_one_of_several_terms_may_be_cut_off() -> None:
    several = "add(mul,mul) mul(exp,nll_loss) exp(layer) nll_loss(log_softmax) log_softmax(layer)"
    cut = f"{several} mul(constant,exp)"
    assert _held((FLOWING, _known(several)[1]), [several, cut, cut]) == [True, False]
    # A term of constants that is left out learns no more than before.
    assert _held((FLOWING, _known(cut)[1]), [cut, several, several]) == [True]


def test_only_the_first_losses_of_each_run_are_judged() -> None:
    formulas = [ENTROPY] * FIRST + [SQUARES] * 2
    assert all(_held(_known(ENTROPY), formulas))
    assert not all(_held(_known(ENTROPY), formulas[2:]))
    monitor = RELATION.monitor(_known(ENTROPY))
    for _ in range(2):
        [window] = _windows([ENTROPY] * (FIRST + 1))
        assert len(monitor.observe(window)) == FIRST


@pytest.mark.parametrize(("outcome", "expected"), [("all", [True]), ("none", [True, False])])
def test_what_goes_on_from_a_loaded_state_is_not_judged(outcome: str, expected: list[bool]) -> None:
    run = RunBuilder()
    _backward(run, ENTROPY)
    outputs = [Item(path="loaded", type="str", value=outcome)]
    run.call("torch.optim.Adam.load_state_dict", object="torch.optim.Adam#0", outputs=outputs)
    windows = [run.window()]
    for _ in range(2):
        _backward(run, SQUARES)
        windows.append(run.window())
    assert [holds for _, holds in labels(RELATION, _known(ENTROPY), windows)] == expected


def test_a_loss_is_after_a_model_of_its_own_window() -> None:
    run = RunBuilder()
    _backward(run, ENTROPY)
    windows = [run.window()]
    for _ in range(2):
        items = [Item(path="formula", type="str", value=SQUARES)]
        run.call("torch.Tensor.backward", inputs=items)
        windows.append(run.window())
    # However windows are joined, as `labels` asserts.
    assert [held for _, held in labels(RELATION, _known(ENTROPY), windows)] == [True]
    assert [held for _, held in labels(RELATION, _known(ENTROPY, after=""), windows)] == [False]


def test_losses_after_other_models_are_others() -> None:
    run = RunBuilder()
    for model in ("Net", "Critic"):
        _backward(run, SQUARES, model)
        _backward(run, SQUARES, model)
    window = run.window()
    assert not RELATION.monitor(_known(ENTROPY)).observe(window).holds.all()
    assert RELATION.monitor(_known(SQUARES, after="Critic")).observe(window).holds.all()


@pytest.mark.parametrize(
    ("known", "formula", "message"),
    [
        (ENTROPY, SQUARES, "with mse_loss and without log_softmax, nll_loss"),
        (BOTH, ENTROPY, "without mse_loss, sub"),
        (BOTH, BOTH.replace("sub", "add"), "with add and without sub"),
        (
            f"{ENTROPY} mean(neg) neg(nll_loss)",
            f"{ENTROPY} neg(mean) mean(nll_loss)",
            "with mean of nll_loss, neg of mean and without mean of neg, neg of nll_loss",
        ),
        (
            f"{ENTROPY} mul(constant,nll_loss)",
            f"{ENTROPY} mul(nll_loss,nll_loss)",
            "with mul of nll_loss and nll_loss and without mul of constant and nll_loss",
        ),
    ],
)
def test_what_is_different_is_told(known: str, formula: str, message: str) -> None:
    explanation = _failure(_known(known), formula)
    assert explanation.message == f"the loss of Net is not computed as in the reference: {message}"
    assert explanation.cause is not None
    assert message in explanation.cause.text


def test_what_is_applied_twice_is_told() -> None:
    explanation = _failure((BACKWARD,), SQUASHED)
    expected = "the loss applies log_softmax to the result of softmax"
    assert explanation.message == expected
    assert explanation.cause is not None
    assert "expects logits and is given probabilities" in explanation.cause.text


def test_probabilities_in_place_of_their_logarithms_are_told() -> None:
    for loss in ("nll_loss", "nll_loss2d", "ctc_loss"):
        explanation = _failure((BACKWARD,), f"{loss}(softmax) softmax(layer)")
        assert explanation.message == f"the loss applies {loss} to the result of softmax"
        assert explanation.cause is not None
        assert "log_softmax is missing" in explanation.cause.text


def _proposed(windows: Sequence[Window]) -> set[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in windows:
        proposer.observe(window)
    return {hypothesis.params for hypothesis in proposer.hypotheses()}


def test_what_a_reference_shows_is_proposed() -> None:
    formulas = [ENTROPY, SQUARES] * (MIN_BACKWARDS // 2)
    known, squares = _known(ENTROPY, SQUARES)[1], _known(SQUARES)[1]
    abouts = (BACKWARD, SIGNED, FLOWING, LOGARITHMED, HIDING)
    expected: set[tuple[Param, ...]] = {(about, known) for about in abouts}
    laws: set[tuple[Param, ...]] = {
        *((BACKWARD,), (SHAPED,), (LOGARITHMIC_INPUT,), (LOGITS,)),
    }
    assert _proposed(_windows(formulas)) == laws | expected
    assert _proposed(_windows(formulas[1:])) == laws
    alone = _proposed(_windows([SQUARES] * MIN_BACKWARDS))
    assert alone == {(SHAPED,), *((about, squares) for about in abouts)}
    many = [f"add({number})" for number in range(MAX_WAYS + 1)]
    assert _proposed(_windows(many * 2)) == set()


@pytest.mark.parametrize(
    "params",
    [
        (),
        (APIParam(api_full_name="torch.Tensor.backward"),),
        (BACKWARD, ConstantParam(value=("Net",))),
        (BACKWARD, ConstantParam(value=3)),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the backward"):
        RELATION.monitor(params)


def test_the_rule_is_a_sentence() -> None:
    assert RELATION.describe(_known(ENTROPY)) == (
        "the loss after Net is computed by log_softmax, nll_loss"
    )
    assert RELATION.describe(_known(ENTROPY, SQUARES)).endswith("nll_loss, or in 1 other ways")
    assert RELATION.describe((SIGNED, _known(ENTROPY)[1])).endswith("keep their signs")
    assert RELATION.describe((FLOWING, _known(ENTROPY)[1])).startswith("gradients go to the same")
    assert RELATION.describe((SHAPED,)).startswith("no loss broadcasts")
    assert RELATION.describe((LOGARITHMIC_INPUT,)).startswith("no loss applies nll_loss")
    assert RELATION.describe((LOGITS,)) == "no loss takes what a ReLU returns for logits"
    assert RELATION.describe((BACKWARD,)).endswith("what one of the first returns")
