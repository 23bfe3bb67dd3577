"""What is drawn at random goes together where it did in the reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Param
from traincheck_plugin.relations.base import Explanation
from traincheck_plugin.relations.losses import BACKWARD, FIRST, MIN_BACKWARDS
from traincheck_plugin.relations.random_draws import RandomDrawsRelation
from traincheck_plugin.vocabulary import Item

RELATION = RandomDrawsRelation()
ADDED, COMPARED, TOLD = "mul:float2", "mse_loss:float2", "embedding:float2"
NOISE = f"randn>{COMPARED},{ADDED}"
ANEW = f"randn>{COMPARED} randn>{ADDED}"
SOURCE = NOISE.replace(">", "<")
EACH = NOISE.replace(">", "=")


def _known(text: str = NOISE, after: str = "Net") -> tuple[Param, ...]:
    return BACKWARD, ConstantParam(value=(after, text))


def _backward(run: RunBuilder, draws: str) -> None:
    run.parameters("weight", owner="__main__.Net#0")
    run.call("__main__.Net.forward", object="__main__.Net#0")
    items = [Item(path="formula", type="str", value="mse_loss(layer)")]
    items += [Item(path="draws", type="str", value=draws)] * bool(draws)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(draws: Sequence[str], cuts: Sequence[int] = ()) -> list[Window]:
    return told([lambda run, d=d: _backward(run, d) for d in draws], cuts)


def _held(params: tuple[Param, ...], draws: Sequence[str]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, params, _windows(draws, range(1, len(draws))))]


@given(st.lists(st.sampled_from([NOISE, ANEW, f"{NOISE} rand>{TOLD}", f"rand>{TOLD}", ""])))
def test_a_draw_that_goes_less_far_is_told_when_it_stays(draws: list[str]) -> None:
    expected, num_failed = [], 0
    for one in draws:
        if one.startswith("randn"):
            num_failed = num_failed + 1 if one == ANEW else 0
            if num_failed != 1:
                expected.append(num_failed == 0)
    assert _held(_known(), draws) == expected


@pytest.mark.parametrize(
    ("draws", "held"),
    [
        (NOISE, [True] * 2),
        (f"randn>{TOLD} {NOISE}", [True] * 2),
        (
            f"randn>{ADDED},{COMPARED},{TOLD}".replace(
                f"{ADDED},{COMPARED}", f"{COMPARED},{ADDED}"
            ),
            [True] * 2,
        ),
        (ANEW, [False]),
        (f"randn>{COMPARED}", [False]),
        (f"randn>{COMPARED},{TOLD}", [False]),
        # Noise that is switched off, and what is drawn besides, is no example.
        ("", []),
        (f"randn>{TOLD}", []),
        (f"rand>{COMPARED}", []),
    ],
)
def test_what_goes_less_far(draws: str, held: list[bool]) -> None:
    assert _held(_known(), [draws] * 2) == held


@given(st.lists(st.sampled_from([NOISE, ANEW, f"{NOISE} {ANEW}", f"{NOISE} randn>{TOLD}", ""])))
def test_each_draw_goes_where_all_did(draws: list[str]) -> None:
    expected, num_failed = [], 0
    for one in draws:
        if one:
            num_failed = num_failed + 1 if ANEW in one else 0
            if num_failed != 1:
                expected.append(num_failed == 0)
    assert _held(_known(EACH), draws) == expected


def test_a_longer_run_may_draw_otherwise_later() -> None:
    late = [NOISE] * FIRST + [ANEW] * 3
    assert _held(_known(), late) == [True] * FIRST
    assert _held(_known(after="Other"), [ANEW] * 3) == []


def _proposed(draws: Sequence[str], *, runs: int = 1) -> list[object]:
    proposer = RELATION.proposer()
    for _ in range(runs):
        for window in _windows(draws):
            proposer.observe(window)
    return [hypothesis.params[1].value for hypothesis in proposer.hypotheses()]


def test_the_reference_tells_what_goes_together() -> None:
    several = [NOISE, f"{NOISE} rand>{TOLD}", f"randn>{COMPARED},{ADDED},{TOLD}"]
    assert _proposed([*several, NOISE] * MIN_BACKWARDS) == [("Net", EACH), ("Net", SOURCE)]
    one_of_two = f"{NOISE} randn>{ADDED}"
    assert _proposed([*several, one_of_two] * MIN_BACKWARDS)[0] == ("Net", NOISE)
    assert _proposed([NOISE] * (MIN_BACKWARDS - 1)) == []
    # What is not always there, and what goes to one place alone, tells of its source alone.
    assert _proposed([NOISE, ""] * MIN_BACKWARDS) == [("Net", SOURCE)]
    assert _proposed([f"randn>{ADDED}"] * MIN_BACKWARDS) == [("Net", f"randn<{ADDED}")]
    assert _proposed([NOISE, ANEW] * MIN_BACKWARDS) == [("Net", SOURCE)]


def test_the_reference_tells_what_is_drawn_from_one_distribution() -> None:
    alike = f"randn_like>{ADDED}"
    assert _proposed([NOISE, f"{NOISE} {alike}"] * MIN_BACKWARDS)[1] == ("Net", SOURCE)
    other = f"{NOISE} rand>{ADDED}"
    assert _proposed([NOISE] * MIN_BACKWARDS + [other])[1] == ("Net", f"randn<{COMPARED}")
    both = f"{NOISE} rand>{ADDED},{COMPARED}"
    assert _proposed([NOISE] * MIN_BACKWARDS + [both]) == [("Net", EACH)]
    assert _proposed([*[""] * MIN_BACKWARDS, *[NOISE] * (MIN_BACKWARDS - 1)]) == []


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["rand", "randn", "normal", "bernoulli"]),
                st.sets(st.sampled_from([ADDED, COMPARED, TOLD]), min_size=1),
            ),
            max_size=3,
        )
    )
)
def test_a_draw_of_another_distribution_is_told_when_it_stays(
    several: list[list[tuple[str, set[str]]]],
) -> None:
    expected, num_failed = [], 0
    for draws in several:
        drawing = {function for function, uses in draws if uses & {ADDED, COMPARED}}
        if drawing:
            held = drawing <= {"randn", "normal"}
            num_failed = 0 if held else num_failed + 1
            if num_failed != 1:
                expected.append(held)
    texts = [
        " ".join(sorted(f"{function}>{','.join(sorted(uses))}" for function, uses in draws))
        for draws in several
    ]
    assert _held(_known(SOURCE), texts) == expected


@given(
    st.lists(
        st.lists(st.sets(st.sampled_from([ADDED, COMPARED, TOLD]), min_size=1), max_size=3),
        min_size=MIN_BACKWARDS,
        max_size=MIN_BACKWARDS + 4,
    )
)
def test_what_is_proposed_holds_of_the_reference(several: list[list[set[str]]]) -> None:
    draws = [" ".join(sorted(f"randn>{','.join(sorted(uses))}" for uses in one)) for one in several]
    for value in _proposed(draws):
        assert all(_held((BACKWARD, ConstantParam(value=value)), draws))


def _failure(draws: str, known: str = NOISE) -> Explanation:
    [window] = _windows([draws] * 2)
    return RELATION.monitor(_known(known)).observe(window).explain(0)


def test_the_cause_is_told() -> None:
    anew = _failure(ANEW)
    assert anew.message == (
        "what randn draws for the loss of Net goes into mse_loss (float, 2d), another draw into "
        "mul (float, 2d); in the reference one goes into all of mse_loss (float, 2d), mul (float, "
        "2d)"
    )
    assert anew.cause is not None
    assert "draws anew what the reference draws once" in anew.cause.text
    part = _failure(f"randn>{ADDED}")
    assert part.cause is not None
    assert part.cause.text.startswith("what randn draws does not go into mse_loss (float, 2d)")


def test_the_other_distribution_is_told() -> None:
    other = _failure(f"rand>{ADDED} normal>{COMPARED}", SOURCE)
    assert other.message == (
        "what goes into mse_loss (float, 2d), mul (float, 2d) for the loss of Net is drawn by "
        "rand; in the reference by randn"
    )
    assert other.cause is not None
    assert other.cause.text == (
        "random numbers are of another distribution than in a healthy run: rand draws them in "
        "place of randn"
    )


def test_the_rule_has_words() -> None:
    assert RELATION.describe(_known(SOURCE)) == (
        "for the loss of Net, what goes into mse_loss (float, 2d), mul (float, 2d) is drawn by "
        "randn"
    )
    assert RELATION.describe(_known()) == (
        "for the loss of Net, what randn draws goes into all of mse_loss (float, 2d), mul (float, "
        "2d)"
    )
    assert RELATION.describe(_known(EACH)).startswith(
        "for the loss of Net, what randn draws goes each time into all of mse_loss"
    )
    assert RELATION.severity(_known()) == "warning"
    assert RELATION.needs(_known()).functions == frozenset()


@pytest.mark.parametrize(
    "params",
    [
        (),
        (BACKWARD,),
        (BACKWARD, ConstantParam(value="Net")),
        (BACKWARD, ConstantParam(value=("Net", "randn"))),
        (BACKWARD, ConstantParam(value=("Net", "randn>mul:vague2"))),
        (BACKWARD, ConstantParam(value=("Net", NOISE, NOISE))),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the backward as APIParam"):
        RELATION.monitor(params)
