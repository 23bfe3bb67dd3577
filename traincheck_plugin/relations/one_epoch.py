"""OneEpochRelation: the micro-batches of a step come from one epoch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    APIParam,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
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
from traincheck_plugin.relations.lifecycle import (
    completed,
    rows_of_role,
    skipped_steps,
)
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair

EPOCHS = ConstantParam(value=1)


class OneEpochRelation(Relation):
    """The gradients of all backwards that lead to a step are of batches of one epoch.

    ``forall consecutive steps s, t: exists n: exactly n = 1 epochs of the backwards between s and
    t``. Proposed where the reference shows that the last window of an epoch is cut short: it takes
    care of what is left over. Training on an endless stream of batches does not.

    Catches micro-batches that are left over at the end of an epoch and leak into the next one, as
    where a loader was not prepared by Accelerate. Cannot see those that are left over at the end
    of the run.
    """

    name = "OneEpochRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, _ = pair(self.name, params, APIParam, ConstantParam)
        return _Monitor(step)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, _ = pair(self.name, params, APIParam, ConstantParam)
        return f"the micro-batches that lead to a {short(step.api_full_name)} are of one epoch"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        step, _ = pair(self.name, params, APIParam, ConstantParam)
        return api_plan(step)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Epochs:
    """Collects the epochs of the backwards before each step, whichever optimizer makes it."""

    def __init__(self) -> None:
        self._pending: list[int] = []

    def forget(self) -> None:
        """Start anew after a stretch that was not observed."""
        self._pending = []

    def observe(self, window: Window) -> list[tuple[int, list[int]]]:
        """Return the rows of the steps that had backwards, with the epochs of these."""
        steps = completed(window, rows_of_role(window, "step"))
        backwards = rows_of_role(window, "backward")
        rows = np.sort(np.concatenate([steps, skipped_steps(window, steps), backwards]))
        is_backward = np.isin(rows, backwards).tolist()
        epochs = window.catalog.contexts.column("epoch")[window.calls.context[rows]].tolist()
        found = []
        for row, is_one, epoch in zip(rows.tolist(), is_backward, epochs, strict=True):
            if is_one:
                self._pending.append(epoch)
            elif self._pending:
                found.append((row, self._pending))
                self._pending = []
        return found


class _Monitor(Monitor):
    def __init__(self, step: APIParam) -> None:
        self._step = step.api_full_name
        self._epochs = _Epochs()

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._epochs.forget()
            return NO_EXAMPLES
        apis = window.catalog.apis
        found = [
            (row, epochs)
            for row, epochs in self._epochs.observe(window)
            if len(epochs) > 1 and self._step in apis[int(window.calls.api[row])].names
        ]
        if not found:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            row, epochs = found[index]
            left = sum(epoch != epochs[-1] for epoch in epochs)
            name = short(apis[int(window.calls.api[row])].name)
            return Explanation(
                message=f"{name} used the gradients of {left} micro-batches of the epoch before "
                f"and of {len(epochs) - left} of this one",
                cause=Cause(
                    fact="micro-batches of two epochs",
                    subjects=("micro-batches",),
                    text="the micro-batches that were left over at the end of an epoch led to no "
                    "step there, and their gradients leak into the next epoch",
                ),
            )

        rows = np.array([row for row, _ in found], np.int64)
        holds = np.array([len(set(epochs)) == 1 for _, epochs in found], np.bool_)
        return Examples.of_calls(window, rows, holds, explain)


class _Proposer(Proposer):
    """Proposes the rule where the last step of an epoch takes fewer micro-batches than others."""

    def __init__(self) -> None:
        self._epochs = _Epochs()
        self._steps: dict[APIParam, None] = {}
        self._last: list[int] = []
        self._most = 0
        self._shorter = 0

    def observe(self, window: Window) -> None:
        if not window.observed:
            self._epochs.forget()
            self._last = []
            return
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role == "step":
                self._steps[APIParam(api_full_name=api.general, role=api.role)] = None
        for _, epochs in self._epochs.observe(window):
            self._most = max(self._most, len(epochs))
            if self._last and self._last[-1] != epochs[0] and len(self._last) < self._most:
                self._shorter += 1
            self._last = epochs

    def hypotheses(self) -> Iterable[Hypothesis]:
        for step in self._steps if self._shorter else ():
            yield Hypothesis(relation=OneEpochRelation.name, params=(step, EPOCHS))
