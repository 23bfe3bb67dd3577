"""Preconditions: the smallest that tells good examples from bad ones, and no coincidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from traincheck_plugin.inference.preconditions import learn
from traincheck_plugin.inference.tally import Kinds, Tally
from traincheck_plugin.relations.base import Examples, no_explanation
from traincheck_plugin.vocabulary import Context

Labelled = Sequence[tuple[Context, bool, bool]]


def _tally(labelled: Labelled) -> Tally:
    """Tally examples given as (context, holds, held_out)."""
    tally = Tally()
    run = RunBuilder()
    for context, holds, held_out in labelled:
        code = run.catalog.contexts.code(context)
        zeros = np.zeros(1, np.int64)
        examples = Examples(
            holds=np.array([holds]),
            context=np.array([code], np.int32),
            source=np.zeros(1, np.int32),
            sequence=zeros,
            time_ns=zeros,
            explain=no_explanation,
        )
        kinds = Kinds(run.catalog.contexts)
        tally.add("run", examples, kinds, np.array([held_out]))
    return tally


def _context(**properties: object) -> Context:
    return Context(**({"stage": "training"} | properties))  # type: ignore[arg-type]


def test_without_bad_examples_only_the_regime_is_claimed() -> None:
    learned = learn(_tally([(_context(step=s), True, False) for s in range(5)]), ("stage",))
    assert learned is not None
    assert str(learned[0]) == "when stage is training"


def test_the_reason_is_preferred_to_the_moment() -> None:
    labelled = [(_context(step=s, steps_since_clear=min(s, 1)), s > 0, s > 3) for s in range(6)]
    learned = learn(_tally(labelled), ())
    assert learned is not None
    assert str(learned[0]) == "when steps_since_clear is above zero"


def test_two_properties_together() -> None:
    labelled = [
        (_context(stage=stage, micro_step=micro), (stage, micro) == ("training", 0), False)
        for stage in ("training", "validation")
        for micro in (0, 1)
    ]
    learned = learn(_tally(labelled), ())
    assert learned is not None
    assert learned[0].holds(_context(stage="training", micro_step=0))
    assert not learned[0].holds(_context(stage="validation", micro_step=0))
    assert not learned[0].holds(_context(stage="training", micro_step=2))


def test_what_is_good_and_bad_in_the_same_context_is_no_rule() -> None:
    assert learn(_tally([(_context(), True, False), (_context(), False, False)]), ()) is None


def test_what_fails_on_the_part_kept_aside_is_no_rule() -> None:
    assert learn(_tally([(_context(), True, False), (_context(), False, True)]), ()) is None


contexts = st.builds(
    Context,
    stage=st.sampled_from(["training", "validation"]),
    micro_step=st.integers(0, 2),
    steps_since_clear=st.integers(-1, 1),
    step=st.integers(0, 9),
    grad_enabled=st.booleans(),
)


@given(st.lists(st.tuples(contexts, st.booleans(), st.booleans()), max_size=12))
def test_a_precondition_admits_no_bad_example_of_its_reference(labelled: Labelled) -> None:
    learned = learn(_tally(labelled), ("stage",))
    if learned is not None:
        precondition, _ = learned
        assert not any(precondition.holds(c) for c, holds, _ in labelled if not holds)
        assert all(precondition.holds(c) for c, holds, held in labelled if holds and not held) or (
            any(not holds for _, holds, _ in labelled)
        )


@given(st.lists(st.tuples(contexts, st.booleans(), st.booleans()), max_size=12), st.integers(0, 12))
def test_tallies_add_up_in_any_order(labelled: Labelled, cut: int) -> None:
    first, second = _tally(labelled[:cut]), _tally(labelled[cut:])
    first.merge(second)
    other = _tally(labelled[cut:])
    other.merge(_tally(labelled[:cut]))
    assert first.counts == other.counts
    assert first.total() == _tally(labelled).total()
