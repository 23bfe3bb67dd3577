from __future__ import annotations

import pytest

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.invariants.model import APIParam, Invariant
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.needs import plan_for
from traincheck_plugin.relations.registry import relations


def covering(before: str, call: str) -> Invariant:
    return Invariant(
        relation="FunctionCoverRelation",
        params=(APIParam(api_full_name=before), APIParam(api_full_name=call)),
    )


def test_no_invariants_need_nothing_but_the_lifecycle():
    assert plan_for([], relations()) == Plan.nothing()


def test_what_each_needs_is_joined():
    plan = plan_for(
        [covering("torch.relu", "torch.add"), covering("torch.sin", "torch.add")], relations()
    )
    assert plan.functions == {"torch.relu", "torch.add", "torch.sin"}
    assert plan.attributes == {}


def test_an_unknown_relation_is_named_with_those_there_are():
    with pytest.raises(InvariantError) as caught:
        plan_for([Invariant(relation="MoonPhaseRelation", params=())], relations())
    assert str(caught.value).startswith("unknown relation 'MoonPhaseRelation'; the relations are ")
    assert "APIContainRelation" in str(caught.value)
