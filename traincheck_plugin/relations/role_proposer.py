"""Proposes one rule for every API that means the same for training."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param
from traincheck_plugin.relations.base import Proposer
from traincheck_plugin.vocabulary import Role


class RoleProposer(Proposer):
    """Proposes a rule for the general name of each API of some roles that was called.

    Args:
        relation: name of the relation.
        roles: of the APIs that are the first parameter.
        rest: the other parameters.
    """

    def __init__(self, relation: str, roles: frozenset[Role], *rest: Param) -> None:
        self._relation = relation
        self._roles = roles
        self._rest = rest
        self._apis: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role in self._roles:
                self._apis[APIParam(api_full_name=api.general, role=api.role)] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        for api in self._apis:
            yield Hypothesis(relation=self._relation, params=(api, *self._rest))


class ScheduleProposer(Proposer):
    """Proposes a rule for each pair of what steps optimizers and what moves schedules.

    Args:
        relation: name of the relation.
    """

    def __init__(self, relation: str) -> None:
        self._relation = relation
        self._steps: dict[APIParam, None] = {}
        self._moves: dict[APIParam, None] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            if api.role in ("step", "scheduler"):
                found = self._steps if api.role == "step" else self._moves
                found[APIParam(api_full_name=api.general, role=api.role)] = None

    def pairs(self) -> Iterable[tuple[APIParam, APIParam]]:
        """Return the pairs that were called so far."""
        return product(self._steps, self._moves)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for both in self.pairs():
            yield Hypothesis(relation=self._relation, params=both)
