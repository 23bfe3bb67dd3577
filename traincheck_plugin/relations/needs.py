"""What has to be observed to check a set of invariants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import Relation


def plan_for(invariants: Iterable[Invariant], relations: Mapping[str, Relation]) -> Plan:
    """Return the least that has to be observed to check *invariants*.

    Raises:
        InvariantError: a relation is not among *relations*, or refuses its parameters.
    """
    plan = Plan.nothing()
    for invariant in invariants:
        relation = relations.get(invariant.relation)
        if relation is None:
            raise InvariantError(
                f"unknown relation {invariant.relation!r}; "
                f"the relations are {', '.join(sorted(relations))}"
            )
        plan = plan.union(relation.needs(invariant.params))
    return plan
