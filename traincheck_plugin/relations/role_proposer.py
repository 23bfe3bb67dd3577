"""Proposes one rule for every API that means the same for training."""

from __future__ import annotations

from collections.abc import Iterable

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
