"""A load of a module loads something."""

from __future__ import annotations

import pytest

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.inference.corpus import is_general
from traincheck_plugin.invariants.codec import decode_invariant, encode_invariant
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.relations.load import LOADS, OTHER, TIES, LoadRelation
from traincheck_plugin.vocabulary import Item

RELATION = LoadRelation()


def _loads(*outcomes: str) -> Window:
    run = RunBuilder()
    for outcome in outcomes:
        items = [Item(path="loaded", type="str", value=outcome.partition(" ")[0])]
        facts = [fact.partition("=") for fact in outcome.split()[1:]]
        items += [Item(path=fact, type="str", value=how or "yes") for fact, _, how in facts]
        items *= bool(outcome)
        run.call("torch.nn.Module.load_state_dict", object="__main__.Net#0", outputs=items)
        # Of an optimizer, where there may be no state yet.
        run.call("torch.optim.Adam.load_state_dict", object="torch.optim.Adam#0", outputs=items)
    return run.window()


def test_only_what_loads_nothing_fails() -> None:
    found = labels(RELATION, (LOADS,), [_loads("all", "none", "", "some")])
    assert [holds for _, holds in found] == [True, False, True]


def test_a_failure_names_the_call_and_the_module() -> None:
    examples = RELATION.monitor((LOADS,)).observe(_loads("none"))
    cause = examples.explain(0).cause
    assert cause is not None
    assert cause.text.startswith(
        "no name in what load_state_dict (train.py:1 in train) was given is one of __main__.Net#0"
    )


def test_a_module_that_is_given_its_own_memory_is_told() -> None:
    window = _loads("all", "all own=kept", "", "none", "some own=unchanged", "all own=loaded")
    found = labels(RELATION, (OTHER,), [window])
    assert [holds for _, holds in found] == [True, False, True, False, False]
    explain = RELATION.monitor((OTHER,)).observe(window).explain
    kept, unchanged, loaded = (explain(index).cause for index in (1, 3, 4))
    assert kept is not None
    assert unchanged is not None
    assert loaded is not None
    assert "the memory of __main__.Net#0 itself: its state_dict() was kept" in kept.text
    assert kept.text.endswith("went on with the training")
    assert "nothing else came into its state_dict()" in unchanged.text
    assert loaded.text.endswith("what was loaded meanwhile is in it, too")
    assert RELATION.severity((OTHER,)) == "warning"
    assert RELATION.severity((LOADS,)) == "critical"


def test_a_module_that_has_apart_what_is_one_in_the_checkpoint_is_told() -> None:
    window = _loads("all", "some untied", "")
    assert [holds for _, holds in labels(RELATION, (TIES,), [window])] == [True, False]
    explanation = RELATION.monitor((TIES,)).observe(window).explain(1)
    assert explanation.message.endswith("loaded tied tensors into separate ones of __main__.Net#0")
    assert explanation.cause is not None
    assert "was built without tying them" in explanation.cause.text


@pytest.mark.parametrize(
    ("outcome", "number"),
    [("all", 3), ("all own", 2), ("all own untied", 1), ("none", 2), ("", 0)],
)
def test_what_loaded_something_is_proposed(outcome: str, number: int) -> None:
    proposer = RELATION.proposer()
    proposer.observe(_loads(outcome))
    hypotheses = list(proposer.hypotheses())
    assert len(hypotheses) == number
    assert all(is_general(hypothesis) for hypothesis in hypotheses)


def test_the_rule_has_words_and_a_form_on_disk() -> None:
    assert RELATION.describe((LOADS,)).startswith("Module.load_state_dict loads at least one")
    for params in ((LOADS,), (OTHER,), (TIES,)):
        invariant = Invariant(relation=RELATION.name, params=params)
        assert decode_invariant(encode_invariant(invariant)).params == params
    with pytest.raises(InvariantError, match="expects one of the parameters"):
        RELATION.monitor(())
