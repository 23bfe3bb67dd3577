from __future__ import annotations

import itertools
import json

import pytest

from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan

SOME = Plan(
    functions=frozenset({"torch.relu"}),
    attributes={"step": frozenset({("parameter", "data"), ("group", "value")})},
)
OTHER = Plan(
    functions=frozenset({"torch.add"}),
    attributes={
        "step": frozenset({("parameter", "grad")}),
        "mode": frozenset({("module", "value")}),
    },
)


def test_a_union_observes_what_either_does():
    assert SOME.union(OTHER) == Plan(
        functions=frozenset({"torch.relu", "torch.add"}),
        attributes={
            "step": frozenset({("parameter", "data"), ("group", "value"), ("parameter", "grad")}),
            "mode": frozenset({("module", "value")}),
        },
    )


@pytest.mark.parametrize("plan", [SOME, OTHER, Plan.full(), Plan.nothing()])
def test_nothing_adds_nothing_and_everything_stays_everything(plan):
    assert plan.union(Plan.nothing()) == Plan.nothing().union(plan) == plan
    assert plan.union(plan) == plan
    assert plan.union(Plan.full()) == Plan.full().union(plan) == Plan.full()


def test_the_order_of_unions_does_not_matter():
    unions = {
        repr_of(a.union(b).union(c)) for a, b, c in itertools.permutations([SOME, OTHER, SOME])
    }
    assert len(unions) == 1


def repr_of(plan: Plan) -> tuple[object, ...]:
    assert plan.functions is not None
    return (plan.functions, frozenset(plan.attributes.items()))


def test_wants_names_the_attributes_of_one_kind():
    assert SOME.wants("step", "parameter") == {"data"}
    assert SOME.wants("step", "buffer") == frozenset()
    assert SOME.wants("mode", "module") == frozenset()
    assert Plan.full().wants("scheduler", "group") == {"value"}
    assert set(Plan.full().attributes) == set(FULL_ATTRIBUTES)


@pytest.mark.parametrize("plan", [SOME, OTHER, Plan.full(), Plan.nothing()])
def test_a_plan_survives_json_and_covers_itself(plan):
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.covers(plan)
    assert plan.covers(Plan.nothing())
    assert Plan.full().covers(plan)


def test_a_plan_does_not_cover_what_it_does_not_observe():
    assert not SOME.covers(OTHER)
    assert not SOME.covers(Plan.full())
    assert SOME.union(OTHER).covers(OTHER)


@pytest.mark.parametrize("data", [{}, {"functions": None}, {"functions": 3, "attributes": {}}])
def test_a_foreign_object_is_no_plan(data):
    with pytest.raises(ValueError, match="expected the plan of a recording"):
        Plan.from_json(data)


def test_who_has_hashes_can_tell_changes_but_not_the_reverse():
    full = Plan.full()
    assert full.covers(full.telling_changes())
    assert not full.telling_changes().covers(full)
    assert "data" not in full.telling_changes().wants("step", "slot")
