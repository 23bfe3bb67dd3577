"""ShuffledDataRelation: what trains comes in another order in each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
)
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
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import passing_plan
from traincheck_plugin.relations.passing import Deliveries, passing

SHUFFLES = VarNameParam(var_name="shuffles", var_type=VAR_TYPES["loader"], attr_name="value")


class ShuffledDataRelation(Relation):
    """The data loaders that feed the training shuffle.

    ``forall batches b that are delivered for a forward in training: shuffles(loader(b))``. Loaders
    of which it is not known, such as those of iterable data sets, are no examples.

    Catches a `shuffle=True` that was lost, and a sampler that keeps the order. Cannot see data that
    is in an order of its own when it gets to the loader.
    """

    name = "ShuffledDataRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        _check(params)
        return _Monitor()

    def describe(self, params: tuple[Param, ...]) -> str:
        _check(params)
        return "the data loaders that feed the training shuffle"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _check(params)
        return passing_plan("input", "batch", "loader")

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _check(params: tuple[Param, ...]) -> None:
    """Make sure that a hypothesis is one of this relation.

    Raises:
        InvariantError: it is not.
    """
    if params != (SHUFFLES,):
        raise InvariantError(
            f"{ShuffledDataRelation.name} expects a VarNameParam about the fact `shuffles` of data "
            f"loaders, got {params}"
        )


def _fed(window: Window, deliveries: Deliveries) -> Iterator[tuple[int, str, bool]]:
    """Yield the rows of forwards that batches feed, and of each its loader, and if it shuffles."""
    for passed in passing(window):
        for use, batches in deliveries.observe(passed):
            for batch in batches:
                shuffles = batch.facts["shuffles"]
                if shuffles in (0, 1):
                    yield use.row, batch.loader, shuffles == 1


class _Monitor(Monitor):
    def __init__(self) -> None:
        self._deliveries = Deliveries()

    def observe(self, window: Window) -> Examples:
        found = list(_fed(window, self._deliveries))
        if not found or not window.observed:
            return NO_EXAMPLES
        rows = np.array([row for row, _, _ in found], np.int64)
        holds = np.array([shuffles for *_, shuffles in found], np.bool_)
        return Examples.of_calls(window, rows, holds, lambda index: _explain(found[index][1]))


def _explain(loader: str) -> Explanation:
    name = short(loader.partition("#")[0])
    return Explanation(
        message=f"{name} delivers the data for training in the order that it is in, and shuffles "
        "in a healthy run",
        cause=Cause(
            fact="the data is not shuffled",
            subjects=(loader,),
            text=f"{name} was made without shuffle=True, or with a sampler that keeps the order: "
            "the model sees the same batches in the same order in each epoch",
        ),
    )


class _Proposer(Proposer):
    """Proposes the rule where some loader that feeds the training shuffles."""

    def __init__(self) -> None:
        self._deliveries = Deliveries()
        self._shuffles = False

    def observe(self, window: Window) -> None:
        self._shuffles |= any(shuffles for *_, shuffles in _fed(window, self._deliveries))

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._shuffles:
            yield Hypothesis(relation=ShuffledDataRelation.name, params=(SHUFFLES,))
