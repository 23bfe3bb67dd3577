"""The checker: what it makes of monitors that fail, of scopes, and of one cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.builders import training_run
from traincheck_plugin.checker.checker import Checker
from traincheck_plugin.checker.diagnosis import News, diagnose
from traincheck_plugin.checker.violation import Violation
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Invariant, Param, Severity, VarTypeParam
from traincheck_plugin.invariants.precondition import Clause, Precondition
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.relations.api_contain import APIContainRelation
from traincheck_plugin.relations.base import NO_EXAMPLES, Cause, Examples, Explanation, Monitor

UPDATES = Invariant(
    relation="APIContainRelation",
    params=(
        APIParam(api_full_name="torch.optim.Optimizer.step", role="step"),
        VarTypeParam(
            var_type="torch.nn.Parameter",
            attr_name="data",
            post_value="changed",
            where=(("held", True),),
        ),
    ),
    severity="critical",
)


def test_a_violation_is_kept_once_and_counted() -> None:
    checker = Checker([UPDATES])
    for window in training_run(5, updates=False):
        checker.observe(window)
    (outcome,) = checker.outcomes
    assert outcome.status == "failed"
    assert outcome.num_triggered == 5
    (violation,) = outcome.violations
    assert (violation.step, violation.last_step, violation.num_occurrences) == (0, 4, 5)
    assert violation.source == "train.py:1 in train"
    assert violation.stage == "training"


def test_the_precondition_decides_what_is_judged() -> None:
    later = Precondition(
        alternatives=(
            (Clause(type="constant", prop_name="meta_vars.step", values=("above_zero",)),),
        )
    )
    checker = Checker(
        [Invariant(relation=UPDATES.relation, params=UPDATES.params, precondition=later)]
    )
    windows = training_run(3, updates=False)
    checker.observe(windows[0])
    assert checker.outcomes[0].status == "not_triggered"
    checker.observe(windows[1])
    assert checker.outcomes[0].violations[0].step == 1


class _Broken(APIContainRelation):
    """A relation with a fault of its own."""

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        class Fails(Monitor):
            def observe(self, window: Window) -> Examples:
                raise ZeroDivisionError("oh")

        return Fails()


def test_a_fault_of_ours_is_an_error_and_not_healthy() -> None:
    checker = Checker([UPDATES], relations={"APIContainRelation": _Broken()})
    for window in training_run(2):
        checker.observe(window)
    assert checker.outcomes[0].status == "error"
    assert checker.outcomes[0].error == "checker error: ZeroDivisionError: oh"


def test_an_unknown_relation_is_refused() -> None:
    with pytest.raises(InvariantError, match="unknown relation 'Astrology'; the relations are API"):
        Checker([Invariant(relation="Astrology", params=())])


def _violation(
    fact: str | None,
    subjects: tuple[str, ...] = ("w",),
    *,
    step: int = 0,
    rank: int = 0,
    severity: Severity = "critical",
    message: str = "nothing changed",
) -> Violation:
    cause = Cause(fact=fact, subjects=subjects, text=f"because {fact}") if fact else None
    return Violation(
        invariant=Invariant(relation="R", params=(), severity=severity),
        message=message,
        cause=cause,
        step=step,
        epoch=0,
        stage="training",
        rank=rank,
        source="train.py:1 in train",
        sequence=step * 10,
        time_ns=0,
    )


def test_one_cause_is_one_diagnosis() -> None:
    (diagnosis,) = diagnose(
        [
            _violation("frozen", ("a", "b"), step=3, severity="warning", message="b late"),
            _violation("frozen", ("b",), step=2, message="a early"),
            _violation("frozen", ("a",), step=5, rank=1, message="a early"),
        ]
    )
    assert diagnosis.message == "a early"
    assert diagnosis.severity == "critical"
    assert diagnosis.first.step == 2
    assert len(diagnosis.violations) == 3


def test_different_causes_stay_apart_gravest_first() -> None:
    diagnoses = diagnose(
        [
            _violation("frozen", ("a",), severity="warning"),
            _violation("frozen", ("z",), step=4),
            _violation("learning rate is 0", ("a",), step=1),
            _violation(None, message="x", step=9),
            _violation(None, message="x", rank=1, step=9),
            _violation(None, message="y", step=9),
        ]
    )
    assert [(d.severity, d.first.step, len(d.violations)) for d in diagnoses] == [
        ("critical", 1, 1),
        ("critical", 4, 1),
        ("critical", 9, 2),
        ("critical", 9, 1),
        ("warning", 0, 1),
    ]


def test_of_one_step_the_explained_comes_first() -> None:
    unexplained = _violation(None, message="x", step=2)
    explained = replace(_violation("frozen", ("a",), step=2), sequence=99)
    earlier = _violation(None, message="y", step=1)
    found = diagnose([unexplained, explained, earlier])
    assert [d.violations[0] for d in found] == [earlier, explained, unexplained]


def test_what_was_not_observed_is_not_judged() -> None:
    # Without the frames of steps, a step that updates nothing looks like one that updates.
    unobserved = replace(Plan.full(), attributes={"zero_grad": FULL_ATTRIBUTES["zero_grad"]})
    checker = Checker([UPDATES], plan=unobserved)
    for window in training_run(3, updates=False):
        checker.observe(window)
    assert checker.num_unobserved == 1
    assert checker.outcomes[0].status == "not_triggered"
    assert Checker([UPDATES], plan=Plan.full()).num_unobserved == 0


def test_news_are_told_once() -> None:
    checker = Checker([UPDATES])
    news = News()
    told = []
    for window in training_run(5, updates=False):
        checker.observe(window)
        told.append(news.of(v for outcome in checker.outcomes for v in outcome.violations))
    assert [len(diagnoses) for diagnoses in told] == [1, 0, 0, 0, 0]


class _NeverCalled(Monitor):
    """Fails at the end of the run, for its first call of all."""

    def __init__(self) -> None:
        self._first: Window | None = None

    def observe(self, window: Window) -> Examples:
        self._first = self._first or window
        return NO_EXAMPLES

    def finish(self) -> Examples:
        assert self._first is not None
        return Examples.of_calls(
            self._first,
            np.array([0]),
            np.array([False]),
            lambda row: Explanation(message="it never happened"),
        )


class _NeverCalledRelation(APIContainRelation):
    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _NeverCalled()


@pytest.mark.parametrize(
    ("is_success", "observed", "failed"), [(True, True, 1), (False, True, 0), (True, False, 0)]
)
def test_what_never_happened_is_judged_at_the_end_of_a_whole_run(
    is_success: bool, observed: bool, failed: int
) -> None:
    checker = Checker([UPDATES], relations={UPDATES.relation: _NeverCalledRelation()})
    windows = training_run(3)
    for window in (*windows[:-1], replace(windows[-1], observed=observed)):
        checker.observe(window)
    assert not checker.outcomes[0].violations
    checker.finish(is_success=is_success)
    assert [v.message for v in checker.outcomes[0].violations] == ["it never happened"] * failed
