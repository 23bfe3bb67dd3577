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
from traincheck_plugin.relations.exclusive_change import CHANGED, ExclusiveChangeRelation
from traincheck_plugin.relations.var_state import FINITE

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


def test_it_is_proposed_for_steps() -> None:
    proposer = RELATION.proposer()
    for window in told([_step(FIRST, (True, True, False), False, True)] * 3, [1, 2]):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == [Hypothesis(relation=RELATION.name, params=RULE)]
    assert "two optimizers" in RELATION.describe(RULE)


def test_other_parameters_are_refused() -> None:
    with pytest.raises(InvariantError, match="speaks of the data of parameters"):
        RELATION.monitor((STEP, FINITE))
