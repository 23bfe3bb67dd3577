"""LossTermsRelation: what is added to a loss gives gradients."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.losses import BACKWARD, Loss, losses, whose
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NO_CUT


class LossTermsRelation(Relation):
    """No term of a loss is computed of what gradients go to and gives none itself.

    ``forall backwards b of a loss, forall terms t that were added to it: not (t has no gradient,
    and something that t is computed of has one)``. A term is a single number. That autograd was
    switched off where a term was computed is not counted: what is frozen on purpose may have one.
    The first failure in a row of the losses after one class is excused.

    Catches a score of thresholded predictions as a part of the loss, a penalty of gradients that
    are computed without their graph, and a term that is detached. Cannot see what is added as a
    number of Python.
    """

    name = "LossTermsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        _check(params)
        return _Monitor()

    def describe(self, params: tuple[Param, ...]) -> str:
        _check(params)
        return "what is added to a loss gives gradients, where it is computed of what has some"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _check(params)
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _check(params: tuple[Param, ...]) -> None:
    """Make sure that a hypothesis is the one of this relation.

    Raises:
        InvariantError: it is another.
    """
    if params != (BACKWARD,):
        raise InvariantError(
            f"{LossTermsRelation.name} expects the backward as APIParam, got {params}"
        )


class _Monitor(Monitor):
    def __init__(self) -> None:
        self._excuses = PerRun[dict[str, Excuse]](dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        judged = [
            loss
            for loss in losses(window)
            if loss.cuts and excuses.setdefault(loss.after, Excuse()).counts(loss.cuts == NO_CUT)
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([loss.row for loss in judged], np.int64),
            np.array([loss.cuts == NO_CUT for loss in judged], np.bool_),
            lambda index: _explain(judged[index]),
        )


def _explain(loss: Loss) -> Explanation:
    functions = loss.cuts.split()
    if functions == ["grad"]:
        why = "the gradients that it is computed of are taken without create_graph=True"
    else:
        why = f"{' and '.join(functions)} took the gradients of what it is computed of"
    what = whose(loss.after)
    return Explanation(
        message=f"a term that is added to {what} gives no gradient",
        cause=Cause(
            fact="another loss",
            subjects=("loss",),
            text=f"a term of {what} changes its value and teaches nothing: {why}",
        ),
    )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._has_losses = False

    def observe(self, window: Window) -> None:
        self._has_losses |= any(loss.cuts for loss in losses(window))

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._has_losses:
            yield Hypothesis(relation=LossTermsRelation.name, params=(BACKWARD,))
