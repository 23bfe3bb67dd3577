"""Who changes a parameter, against a naive reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam, Hypothesis
from traincheck_plugin.relations.exclusive_change import CHANGED, LEFT_OUT, ExclusiveChangeRelation
from traincheck_plugin.relations.var_state import FINITE
from traincheck_plugin.vocabulary import GradState

RELATION = ExclusiveChangeRelation()
STEP = APIParam(api_full_name="torch.optim.Optimizer.step", role="step")
RULE = (STEP, CHANGED)
FIRST, SECOND = "torch.optim.SGD#0", "torch.optim.Adam#0"

# A step: the optimizer, which of three parameters it changes, whether another step of the other
# optimizer is inside that changes the same, and whether a backward comes before.
Step = tuple[str, tuple[bool, bool, bool], bool, bool]
windows_of_steps = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([FIRST, SECOND]),
            st.tuples(st.booleans(), st.booleans(), st.booleans()),
            st.booleans(),
            st.booleans(),
        ),
        max_size=4,
    ),
    max_size=4,
)


def _step(
    target: str, changes: Sequence[bool], wraps: bool, is_led: bool
) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        parameters = run.parameters("a", "b", "c")
        if is_led:
            run.call("torch.Tensor.backward")
        with run.calling("torch.optim.SGD.step", object=target):
            run.frame("begin", parameters, data=[1, 2, 3])
            if wraps:
                _step(SECOND if target == FIRST else FIRST, changes, False, False)(run)
            run.frame("end", parameters, data=[i + 1 + 10 * c for i, c in enumerate(changes)])

    return tell


def _reference(steps: Sequence[Step]) -> bool:
    return not any(
        first[0] != second[0]
        and any(a and b for a, b in zip(first[1], second[1], strict=True))
        and not any(led for *_, led in steps[start + 1 : stop + 1])
        for start, first in enumerate(steps)
        for stop, second in enumerate(steps)
        if start < stop
    )


@given(windows_of_steps)
def test_windows_are_judged_as_the_formula_says(run: list[list[Step]]) -> None:
    ends = [sum(map(len, run[: number + 1])) for number in range(len(run))]
    windows = told([_step(*step) for steps in run for step in steps], ends[:-1])
    expected = [_reference(steps) for steps in run if steps]
    assert [h for _, h in labels(RELATION, RULE, windows)] == expected


def test_the_explanation_names_the_parameters() -> None:
    (window,) = told(
        [
            _step(FIRST, (True, True, False), False, True),
            _step(SECOND, (False, True, True), False, False),
        ],
        [],
    )
    explanation = RELATION.monitor(RULE).observe(window).explain(0)
    assert explanation.message == "`b` was updated by two optimizers in one step"
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("b",)
    assert explanation.cause.text.startswith("`b` is in two optimizers")


OTHERS = (STEP, LEFT_OUT)

turns = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([FIRST, SECOND]),
            st.tuples(st.booleans(), st.booleans()),
            st.sampled_from([GradState.NULL, GradState.ZERO, GradState.NON_ZERO]),
            st.booleans(),
        ),
        max_size=4,
    ),
    max_size=4,
)


def _turn(
    target: str, changes: Sequence[bool], grad: GradState, is_held: bool
) -> Callable[[RunBuilder], object]:
    """A step, after a backward, and what a parameter that it leaves alone is then."""

    def tell(run: RunBuilder) -> None:
        parameters = run.parameters("a", "b", "rest")
        run.call("torch.Tensor.backward")
        with run.calling("torch.optim.SGD.step", object=target):
            run.frame(
                "begin",
                parameters,
                data=[1, 2, 3],
                grad=[GradState.NON_ZERO] * 2 + [grad],
                optimizer=[target, target, "torch.optim.SGD#9" if is_held else None],
                requires_grad=True,
                in_model=True,
            )
            run.frame("end", parameters, data=[i + 1 + 10 * c for i, c in enumerate(changes)] + [3])

    return tell


@given(turns)
def test_turns_are_judged_as_the_formula_says(
    run: list[list[tuple[str, tuple[bool, bool], GradState, bool]]],
) -> None:
    ends = [sum(map(len, run[: number + 1])) for number in range(len(run))]
    windows = told([_turn(*step) for steps in run for step in steps], ends[:-1])
    expected = [
        not any(
            writers and writers[-1] != target and grad == GradState.NON_ZERO and not is_held
            for number, (target, changes, grad, is_held) in enumerate(steps)
            for place in (0, 1)
            if changes[place]
            for writers in [[step[0] for step in steps[:number] if step[1][place]]]
        )
        for steps in run
        if len({target for target, *_ in steps}) == 2
    ]
    assert [h for _, h in labels(RELATION, OTHERS, windows)] == expected


def test_it_is_told_what_was_left_out() -> None:
    both = (True, True)
    turns = [_turn(target, both, GradState.NON_ZERO, False) for target in (FIRST, SECOND)]
    (window,) = told(turns, [])
    explanation = RELATION.monitor(OTHERS).observe(window).explain(0)
    assert explanation.cause is not None
    assert explanation.cause.text == (
        "`a`, `b` are in two optimizers: one of them was built with these in place of `rest`, "
        "which get gradients and are in no optimizer"
    )
    assert explanation.cause.left_out == ("rest",)
    proposer = RELATION.proposer()
    for is_held in (False, True):
        (window,) = told([_turn(t, both, GradState.NON_ZERO, is_held) for t in (FIRST, SECOND)], [])
        proposer.observe(window)
        found = [hypothesis.params for hypothesis in proposer.hypotheses()]
        assert found == [RULE, OTHERS][: 1 + is_held]
    assert RELATION.describe(OTHERS).endswith("where others get gradients and are in none")


def test_it_is_proposed_for_steps() -> None:
    proposer = RELATION.proposer()
    for window in told([_step(FIRST, (True, True, False), False, True)] * 3, [1, 2]):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == [Hypothesis(relation=RELATION.name, params=RULE)]
    assert "two optimizers" in RELATION.describe(RULE)


def test_other_parameters_are_refused() -> None:
    with pytest.raises(InvariantError, match="speaks of the data of parameters"):
        RELATION.monitor((STEP, FINITE))
