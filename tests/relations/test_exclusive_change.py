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

# A step: the optimizer, which of three parameters it changes, and whether another step of the
# other optimizer is inside that changes the same.
Step = tuple[str, tuple[bool, bool, bool], bool]
windows_of_steps = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from([FIRST, SECOND]),
            st.tuples(st.booleans(), st.booleans(), st.booleans()),
            st.booleans(),
        ),
        max_size=4,
    ),
    max_size=4,
)


def _step(target: str, changes: Sequence[bool], wraps: bool) -> Callable[[RunBuilder], object]:
    def tell(run: RunBuilder) -> None:
        parameters = run.parameters("a", "b", "c")
        with run.calling("torch.optim.SGD.step", object=target):
            run.frame("begin", parameters, data=[1, 2, 3])
            if wraps:
                _step(SECOND if target == FIRST else FIRST, changes, False)(run)
            run.frame("end", parameters, data=[i + 1 + 10 * c for i, c in enumerate(changes)])

    return tell


def _reference(steps: Sequence[Step]) -> bool:
    return not any(
        ours != theirs and any(a and b for a, b in zip(mine, others, strict=True))
        for ours, mine, _ in steps
        for theirs, others, _ in steps
    )


@given(windows_of_steps)
def test_windows_are_judged_as_the_formula_says(run: list[list[Step]]) -> None:
    windows = told([_step(*step) for steps in run for step in steps], _cuts(run))
    verdicts = [_reference(steps) for steps in run if steps]
    expected = [
        held
        for before, held in zip([True, *verdicts], verdicts, strict=False)
        if held or not before
    ]
    assert [h for _, h in labels(RELATION, RULE, windows)] == expected


def _cuts(run: list[list[Step]]) -> list[int]:
    ends = [sum(map(len, run[: number + 1])) for number in range(len(run))]
    return ends[:-1]


def test_the_explanation_names_the_parameters() -> None:
    batch = [_step(FIRST, (True, True, False), False), _step(SECOND, (False, True, True), False)]
    first, second = told(batch * 2, [2])
    monitor = RELATION.monitor(RULE)
    # One batch may see the change from one optimizer to the next.
    assert not len(monitor.observe(first))
    explanation = monitor.observe(second).explain(0)
    assert explanation.message == "`b` was updated by two optimizers in one step"
    assert explanation.cause is not None
    assert explanation.cause.subjects == ("b",)
    assert explanation.cause.text.startswith("`b` is in two optimizers")


def test_it_is_proposed_for_steps() -> None:
    proposer = RELATION.proposer()
    for window in told([_step(FIRST, (True, True, False), False)] * 3, [1, 2]):
        proposer.observe(window)
    assert list(proposer.hypotheses()) == [Hypothesis(relation=RELATION.name, params=RULE)]
    assert "two optimizers" in RELATION.describe(RULE)


def test_other_parameters_are_refused() -> None:
    with pytest.raises(InvariantError, match="speaks of the data of parameters"):
        RELATION.monitor((STEP, FINITE))
