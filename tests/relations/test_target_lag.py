"""Where the targets of a loss are in the inputs, against a naive reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, ConstantParam, Param, VarNameParam
from traincheck_plugin.relations.losses import BACKWARD
from traincheck_plugin.relations.target_lag import MIN_OCCURRENCES, TargetLagRelation
from traincheck_plugin.vocabulary import NOWHERE, Item, Variable

RELATION = TargetLagRelation()

Lags = tuple[float, float]
"""Those of two inputs at one backward."""


def _of(name: str, lag: int | str, *known: str, operation: str = "nll_loss") -> tuple[Param, ...]:
    return (
        VarNameParam(var_name=name, var_type=VAR_TYPES["target"], attr_name="value"),
        ConstantParam(value=(operation, lag, *known)),
    )


SHIFTED, ABSENT = _of("GPT.tokens", 1), _of("GPT", "nowhere")
ONLY = _of("GPT", "nowhere", "tokens")
AHEAD: tuple[Param, ...] = (BACKWARD,)
CAUSAL: tuple[Param, ...] = (replace(BACKWARD, argument="hides"),)
LOOKS_BACK = "attention.masked=yes self_attention.hides=later self_attention.masked=yes"


def _windows(
    backwards: Sequence[Lags],
    operation: str = "nll_loss",
    num_each: int = 1,
    settings: str = LOOKS_BACK,
) -> list[Window]:
    items = [Item(path="settings", type="str", value=settings)]
    run, windows = RunBuilder(), []
    rows = run.variables(
        *(
            Variable(kind="target", name=name, owner="__main__.GPT#0", type=operation)
            for name in ("tokens", "places")
        )
    )
    for step in range(0, len(backwards), num_each):
        run.at(step=step, stage="training")
        for lags in backwards[step : step + num_each]:
            with run.calling("torch.Tensor.backward", role="backward", inputs=items):
                run.frame("begin", rows, value=list(lags))
        run.call("torch.optim.Adam.step", object="torch.optim.Adam#0")
        windows.append(run.window())
    return windows


def _held(params: tuple[Param, ...], windows: Sequence[Window]) -> list[bool]:
    return [holds for _, holds in labels(RELATION, params, windows)]


def _excused(holds: Sequence[bool]) -> list[bool]:
    """Return the verdicts without the first failure in a row."""
    return [held for last, held in zip([True, *holds], holds, strict=False) if held or not last]


LAGS = st.sampled_from([0.0, 1.0, 2.0, NOWHERE, math.nan])


@given(st.lists(st.tuples(LAGS, LAGS), max_size=8))
def test_backwards_are_judged_as_the_formulas_say(backwards: list[Lags]) -> None:
    windows = _windows(backwards)
    assert _held(SHIFTED, windows) == _excused(
        [lags[0] == 1 for lags in backwards if math.isfinite(lags[0])]
    )
    assert _held(ABSENT, windows) == _excused(
        [
            not any(map(math.isfinite, lags))
            for lags in backwards
            if any(map(math.isfinite, lags)) or lags == (NOWHERE, NOWHERE)
        ]
    )
    # They may follow in another input, as in what a decoder is given.
    assert _held(ONLY, windows) == _excused(
        [lags[1] != 0 for lags in backwards if not math.isnan(lags[1])]
    )
    known = [[lag for lag in lags if math.isfinite(lag)] for lags in backwards]
    assert _held(AHEAD, windows) == _excused([min(lags) <= 1 for lags in known if lags])
    assert _held(CAUSAL, windows) == _excused([any(lags) for lags in known if lags])
    assert _held(_of("GPT.tokens", 1, operation="mse_loss"), windows) == []
    assert _held(_of("Bert", "nowhere"), windows) == []


def _proposed(backwards: Sequence[Lags]) -> set[tuple[Param, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(backwards):
        proposer.observe(window)
    found = {hypothesis.params for hypothesis in proposer.hypotheses()}
    # About all pipelines, wherever classes are known to be in an input.
    assert (AHEAD in found) == any(math.isfinite(lag) for lags in backwards for lag in lags)
    assert (AHEAD in found) == (CAUSAL in found)
    return found - {AHEAD, CAUSAL}


@pytest.mark.parametrize(
    "settings",
    [
        "",
        # An encoder sees all of what it is given, and may be asked for it.
        "attention.masked=no self_attention.masked=no",
        f"{LOOKS_BACK} attention.masked=no",
        f"{LOOKS_BACK} self_attention.hides=keys",
        LOOKS_BACK.replace("later", "unknown"),
    ],
)
def test_what_sees_more_than_the_past_may_be_asked_for_its_input(settings: str) -> None:
    copied = _windows([(0.0, NOWHERE)] * 3, settings=settings)
    assert _held(CAUSAL, copied) == []
    assert _held(CAUSAL, _windows([(0.0, NOWHERE)] * 3)) == [False] * 2
    assert _held(CAUSAL, _windows([(0.0, NOWHERE)] * 3, "mse_loss")) == []


def test_the_heads_of_one_step_are_judged_together_and_numbers_may_be_forecast() -> None:
    backwards = [(3.0, NOWHERE), (2.0, NOWHERE), (1.0, NOWHERE)] * 3
    assert _held(AHEAD, _windows(backwards, num_each=3)) == [True] * 3
    assert _held(AHEAD, _windows([(2.0, NOWHERE)] * 3)) == [False] * 2
    assert _held(AHEAD, _windows([(2.0, NOWHERE)] * 3, "mse_loss")) == []


def test_what_was_always_the_same_is_proposed() -> None:
    shifted, absent = (1.0, NOWHERE), (NOWHERE, NOWHERE)
    assert _proposed([shifted] * MIN_OCCURRENCES) == {SHIFTED, ONLY}
    assert _proposed([shifted] * (MIN_OCCURRENCES - 1)) == set()
    assert _proposed([*[shifted] * MIN_OCCURRENCES, (2.0, NOWHERE)]) == {ONLY}
    assert _proposed([*[shifted] * MIN_OCCURRENCES, absent]) == {SHIFTED, ONLY}
    assert _proposed([(1.0, 4.0)] * MIN_OCCURRENCES) == {SHIFTED, _of("GPT.places", 4)}
    assert _proposed([(1.0, math.nan)] * MIN_OCCURRENCES) == {SHIFTED}
    assert _proposed([absent] * MIN_OCCURRENCES) == {ABSENT}
    # An input that is too large to be looked at may be what the target is.
    for unknown in ((math.nan, math.nan), (math.nan, NOWHERE)):
        assert _proposed([unknown] * MIN_OCCURRENCES) == set()
    assert _proposed([*[absent] * MIN_OCCURRENCES, (math.nan, NOWHERE)]) == {ABSENT}
    assert _proposed([*[absent] * MIN_OCCURRENCES, (NOWHERE, 3.0)]) == {
        _of("GPT", "nowhere", "places")
    }


@pytest.mark.parametrize(
    ("params", "lags", "message", "cause"),
    [
        (SHIFTED, (2.0, NOWHERE), "shifted by 2; in the reference they are `GPT.tokens` shifted by"
         " 1", "shifted twice against `GPT.tokens`"),
        (SHIFTED, (3.0, NOWHERE), "shifted by 3", "by 3, not by 1"),
        (AHEAD, (2.0, NOWHERE), "the targets of nll_loss are `GPT.tokens` shifted by 2, expected by"
         " 1", "shifted twice against `GPT.tokens`"),
        (SHIFTED, (0.0, NOWHERE), "the same as `GPT.tokens`", "it only has to copy it"),
        (CAUSAL, (0.0, NOWHERE), "the same as `GPT.tokens`, and attention shows it to the model",
         "it only has to copy it"),
        (ONLY, (1.0, 0.0), "the same as `GPT.places`; in the reference they are not among the"
         " inputs of GPT other than `tokens`", "it only has to copy it"),
        (ABSENT, (NOWHERE, 4.0), "`GPT.places` shifted by 4; in the reference they are not among",
         "`GPT.places` holds what the model should predict"),
    ],
)  # fmt: skip
def test_it_is_said_where_they_are(
    params: tuple[Param, ...], lags: Lags, message: str, cause: str
) -> None:
    monitor = RELATION.monitor(params)
    [_, examples] = [monitor.observe(window) for window in _windows([lags] * 2)]
    explanation = examples.explain(0)
    assert message in explanation.message
    assert explanation.cause is not None
    assert cause in explanation.cause.text


def test_what_it_says() -> None:
    assert RELATION.describe(AHEAD).startswith("classes that come later in an input")
    assert RELATION.needs(AHEAD) == RELATION.needs(SHIFTED) == RELATION.needs(CAUSAL)
    assert "are not their own inputs" in RELATION.describe(CAUSAL)
    assert RELATION.describe(SHIFTED) == "the targets of nll_loss are `GPT.tokens` shifted by 1"
    assert RELATION.describe(_of("GPT.tokens", 0)).endswith("are the same as `GPT.tokens`")
    assert RELATION.describe(ABSENT).endswith("are not among the inputs of GPT")
    assert RELATION.describe(ONLY).endswith("not among the inputs of GPT other than `tokens`")
    assert RELATION.needs(SHIFTED).attributes == {"backward": frozenset({("target", "value")})}
    assert RELATION.severity(SHIFTED) == "warning"


@pytest.mark.parametrize(
    "params",
    [
        SHIFTED[:1],
        _of("GPT", "somewhere"),
        _of("GPT", 1.5),  # type: ignore[arg-type]
        (VarNameParam(var_name="0", var_type=VAR_TYPES["input"], attr_name="value"), SHIFTED[1]),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="TargetLagRelation"):
        RELATION.describe(params)
