"""ScheduledOptimizerRelation: a scheduler moves an optimizer that steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, APIParam, Param, Severity
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
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import completed, label, named_optimizer
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair
from traincheck_plugin.relations.role_proposer import ScheduleProposer
from traincheck_plugin.vocabulary import NONE

IN_A_ROW = 2
"""Calls of a scheduler that were for nothing until that is no coincidence."""

PARAMETER = VAR_TYPES["parameter"]

_SHOWN = ("optimizer", "lr", "requires_grad")


class ScheduledOptimizerRelation(Relation):
    """The optimizer that a scheduler moves is one that steps.

    ``forall calls b of a scheduler s of an optimizer o, after a first one: if some optimizer
    stepped since the last call of s, o did``, but for fewer than `IN_A_ROW` calls on end. No
    example is a call where o holds a parameter that requires gradients and that none of those that
    stepped does, for it may wait for its turn; nor one since which the learning rates of those
    changed all the same, as where an optimizer wraps another.

    Catches a scheduler that was made for an optimizer in whose place another one was built. Cannot
    see one whose optimizer was made for another model.
    """

    name = "ScheduledOptimizerRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return ScheduleProposer(self.name)

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        step, moved = pair(self.name, params, APIParam, APIParam)
        return _Monitor(step.api_full_name, moved.api_full_name)

    def describe(self, params: tuple[Param, ...]) -> str:
        step, moved = pair(self.name, params, APIParam, APIParam)
        return (
            f"the optimizer that {short(moved.api_full_name)} moves is one that "
            f"{short(step.api_full_name)} is called on"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        step, moved = pair(self.name, params, APIParam, APIParam)
        held = frozenset(("parameter", name) for name in _SHOWN)
        return api_plan(step, moved).union(
            Plan(functions=frozenset(), attributes={"step": held})  # type: ignore[dict-item]
        )

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


@dataclass(slots=True)
class _Scheduled:
    """An optimizer that a scheduler moved.

    Attributes:
        stepped: optimizers that did since the last call.
        rates: learning rates of all optimizers by then.
        num_idle: calls on end that were for nothing.
    """

    stepped: set[str] = field(default_factory=set)
    rates: dict[str, bytes] = field(default_factory=dict)
    num_idle: int = 0


class _Monitor(Monitor):
    def __init__(self, step: str, moved: str) -> None:
        self._step = step
        self._moved = moved
        self._forget()

    def _forget(self) -> None:
        self._scheduled: dict[str, _Scheduled] = {}
        # By optimizer, at its last step: its learning rates, and all that hold what learns.
        self._rates: dict[str, bytes] = {}
        self._holders: dict[str, set[str]] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._forget()
            return NO_EXAMPLES
        moves = completed(window, window.rows_of_name(self._moved)).tolist()
        steps = completed(window, window.rows_of_name(self._step)).tolist()
        is_step = set(steps)
        found: list[tuple[int, bool, str]] = []
        for row in sorted([*steps, *moves]):
            if row in is_step:
                self._note(window, row)
                continue
            optimizer = named_optimizer(window, row)
            if optimizer:
                held = self._judge(optimizer)
                if held is not None:
                    found.append((row, held, optimizer))
        if not found:
            return NO_EXAMPLES
        rows, holds, optimizers = zip(*found, strict=True)
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda index: self._explain(window, rows[index], optimizers[index]),
        )

    def _note(self, window: Window, row: int) -> None:
        """Take notice of a step."""
        optimizer = label(window, row)
        for scheduled in self._scheduled.values():
            scheduled.stepped.add(optimizer)
        if not self._scheduled.keys() - {optimizer}:
            return
        [position] = frames_at(window, np.array([row]), PARAMETER, _SHOWN, is_begin=True).tolist()
        if position != NONE:
            columns = window.frames[position].columns
            holders = columns["optimizer"]
            own = holders == window.calls.object[row]
            self._rates[optimizer] = columns["lr"][own].tobytes()
            waiting = holders[(holders != NONE) & columns["requires_grad"]]
            codes = np.unique(waiting).tolist()
            self._holders[optimizer] = {window.catalog.objects[code] for code in codes}

    def _judge(self, optimizer: str) -> bool | None:
        """Return whether the next call of a scheduler of *optimizer* holds; None for no example."""
        scheduled = self._scheduled.get(optimizer)
        if scheduled is None:
            self._scheduled[optimizer] = _Scheduled(rates=dict(self._rates))
            return None
        stepped, rates = scheduled.stepped, scheduled.rates
        if not stepped:
            return None
        scheduled.stepped, scheduled.rates = set(), dict(self._rates)
        if optimizer in stepped:
            scheduled.num_idle = 0
            return True
        waits = any(optimizer in self._holders.get(one, {optimizer}) for one in stepped)
        if waits or any(self._rates[one] != rates.get(one, self._rates[one]) for one in stepped):
            scheduled.num_idle = 0
            return None
        scheduled.num_idle += 1
        return False if scheduled.num_idle >= IN_A_ROW else None

    def _explain(self, window: Window, row: int, optimizer: str) -> Explanation:
        name, idle = short(window.catalog.apis[int(window.calls.api[row])].name), short(optimizer)
        return Explanation(
            message=f"{name} moved the schedule of {idle}, which does not step, and others do",
            cause=Cause(
                fact="scheduler of another optimizer",
                subjects=(optimizer,),
                text=f"the scheduler was made for {idle}, in whose place another optimizer "
                "trains: the learning rate does not follow its schedule",
            ),
        )
