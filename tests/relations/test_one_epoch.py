"""Micro-batches that leak into the next epoch."""

from __future__ import annotations

from tests.relations.loops import failure, holding, told
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.one_epoch import EPOCHS, OneEpochRelation

RELATION = OneEpochRelation()
PARAMS = (APIParam(api_full_name="torch.optim.Optimizer.step", role="step"), EPOCHS)
FULL = "backward backward step "
LEAKING = FULL + "backward epoch backward step " + FULL


def test_all_of_a_step_are_of_one_epoch() -> None:
    assert holding(RELATION, PARAMS, FULL + "backward step epoch " + FULL) == [True, True]
    assert holding(RELATION, PARAMS, LEAKING) == [True, False, True]
    # What the scaler skipped is used up, and what was not observed is not known.
    assert holding(RELATION, PARAMS, "backward skip epoch " + FULL) == [True]
    assert holding(RELATION, PARAMS, "backward epoch gap " + FULL) == [True]


def _is_proposed(words: str) -> bool:
    proposer = RELATION.proposer()
    for window in told(words):
        proposer.observe(window)
    return bool(list(proposer.hypotheses()))


def test_only_who_cuts_the_last_window_of_an_epoch_short_is_held_to_it() -> None:
    assert _is_proposed(FULL * 2 + "backward step epoch " + FULL)
    assert not _is_proposed(FULL * 2 + "epoch " + FULL)
    assert not _is_proposed(LEAKING)
    assert not _is_proposed("backward step epoch backward step")


def test_the_cause_is_told() -> None:
    failed = failure(RELATION, PARAMS, LEAKING)
    assert "1 micro-batches of the epoch before and of 1 of this one" in failed.message
    assert failed.cause is not None
    assert "left over at the end of an epoch" in failed.cause.text
