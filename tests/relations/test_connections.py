"""What the parts of a model return, and where it gets to, against a naive reference."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import RunBuilder
from tests.relations.labelling import labels, told
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Param
from traincheck_plugin.relations.connections import ConnectionsRelation
from traincheck_plugin.relations.losses import BACKWARD, FIRST, MIN_BACKWARDS
from traincheck_plugin.vocabulary import MORE, Item

RELATION = ConnectionsRelation()


def _rule(*named: str, after: str = "Net") -> tuple[Param, ...]:
    return BACKWARD, ConstantParam(value=(after, *named))


def _backward(run: RunBuilder, connections: str) -> None:
    run.parameters("weight", owner="__main__.Net#0")
    run.call("__main__.Net.forward", object="__main__.Net#0")
    items = [Item(path="formula", type="str", value="mse_loss(layer)")]
    items += [Item(path="connections", type="str", value=connections)] * bool(connections)
    run.call("torch.Tensor.backward", inputs=items)
    run.at(step=run.context.step + 1)


def _windows(several: Sequence[str]) -> list[Window]:
    events = [lambda run, one=one: _backward(run, one) for one in several]
    return told(events, range(1, len(several)))


def _held(params: tuple[Param, ...], several: Sequence[str]) -> list[bool]:
    return [held for _, held in labels(RELATION, params, _windows(several))]


TURNED = "<last:sum last<norm norm<first:relu:transpose(1,2)"
UNTURNED = "<last:sum last<norm norm<first:relu"
SQUARED = "<last:sum last<norm norm<first:square"
CUT = "<last:sum <norm:sum last<other norm<first:relu:transpose(1,2)"
DETOUR = "<last:sum last<more more<norm norm<first:relu:transpose(1,2)"


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (TURNED, [True] * 3),
        (UNTURNED, [False] * 2),
        (TURNED.replace("(1,2)", "(0,1)"), [False] * 2),
        (TURNED.replace("transpose(1,2)", "index()"), [False] * 2),
        (TURNED.replace(":relu:transpose(1,2)", ":transpose(1,2):relu"), [True] * 3),
        (SQUARED, [True] * 3),
        (CUT, [False] * 2),
        (DETOUR, [True] * 3),
        # Too many ways lead to a part to tell them all.
        (CUT + " last<*", [True] * 3),
        (CUT + " other<a a<*", [True] * 3),
        (CUT + " norm<*", [False] * 2),
        ("<last:sum", [True] * 3),
        ("<other:sum", []),
        ("", []),
    ],
)
def test_what_gets_elsewhere_is_told_when_it_stays(now: str, expected: list[bool]) -> None:
    rule = _rule(*TURNED.split())
    assert _held(rule, [now] * 3) == expected
    assert _held(_rule(*TURNED.split(), after="Other"), [now] * 3) == []


def test_what_was_there_once_is_not_told_any_longer() -> None:
    rule = _rule(*TURNED.split())
    assert _held(rule, [UNTURNED, TURNED, UNTURNED, UNTURNED, CUT]) == [True] * 4
    assert _held(rule, [UNTURNED, UNTURNED, TURNED, UNTURNED]) == [False, True, True]


def test_later_losses_are_not_judged() -> None:
    assert len(_held(_rule(*TURNED.split()), [TURNED] * (FIRST + 3))) == FIRST


PARTS = ("a", "b", "c")
MOVES = ("", ":relu", ":index()", ":relu:index()", ":index():relu")
CONNECTIONS = st.lists(
    st.builds(
        "{}<{}{}".format,
        st.sampled_from(["", *PARTS]),
        st.sampled_from([*PARTS, "*"]),
        st.sampled_from(MOVES),
    ).map(lambda text: text.partition("*")[0] + "*" if "*" in text else text),
    max_size=6,
    unique=True,
).map(lambda several: " ".join(sorted(several)))


def _reaches(edges: set[tuple[str, str]], part: str, source: str) -> bool | None:
    reached = {part}
    for _ in range(len(edges)):
        reached |= {below for above, below in edges if above in reached}
    if any(above in reached and below == source for above, below in edges):
        return True
    return None if "*" in reached else False


def _has(connections: str, one: str) -> bool | None:
    several = [text.partition("<")[::2] for text in connections.split()]
    part, _, rest = one.partition("<")
    source, *way = rest.split(":")
    edges = {(above, below.split(":")[0]) for above, below in several}
    ends = {above for above, below in edges if below != "*"}
    if part not in ends or source not in ends | {below for _, below in edges} - {"*"}:
        return None
    between = [
        below.split(":")[1:]
        for above, below in several
        if below.split(":")[0] == source and above == part
    ]
    if way in between:
        return True
    if not between:
        return _reaches(edges, part, source)
    alike = [_moves(other) for other in between if _computing(other) == _computing(way)]
    return _moves(way) in alike if alike else None


def _moves(way: list[str]) -> list[str]:
    return [name for name in way if "(" in name]


def _computing(way: list[str]) -> list[str]:
    return [name for name in way if "(" not in name]


@given(
    st.lists(CONNECTIONS, max_size=8), CONNECTIONS.filter(lambda text: text and MORE not in text)
)
def test_all_losses_are_judged_as_by_hand(several: list[str], named: str) -> None:
    expected, num_failed, seen = [], 0, set()
    for connections in several:
        verdicts = {one: _has(connections, one) for one in named.split()} if connections else {}
        seen |= {one for one, verdict in verdicts.items() if verdict}
        told_of = [one for one, verdict in verdicts.items() if verdict is not None]
        if told_of:
            is_missing = any(one not in seen for one in told_of)
            num_failed = num_failed + 1 if is_missing else 0
            if num_failed != 1:
                expected.append(not is_missing)
    assert _held(_rule(*named.split()), several) == expected


def _proposed(several: Sequence[str]) -> list[tuple[str, ...]]:
    proposer = RELATION.proposer()
    for window in _windows(several):
        proposer.observe(window)
    return [hypothesis.params[1].value for hypothesis in proposer.hypotheses()]


def test_what_all_losses_have_is_proposed() -> None:
    assert _proposed([TURNED] * MIN_BACKWARDS) == [("Net", *sorted(TURNED.split()))]
    assert _proposed([TURNED] * (MIN_BACKWARDS - 1)) == []
    assert _proposed([TURNED] * MIN_BACKWARDS + [UNTURNED]) == [("Net", "<last:sum", "last<norm")]
    # That a part is not there is no exception.
    assert _proposed([TURNED] * MIN_BACKWARDS + ["<last:sum"]) == [("Net", *sorted(TURNED.split()))]


@given(st.lists(CONNECTIONS, min_size=MIN_BACKWARDS, max_size=MIN_BACKWARDS + 4))
def test_what_is_proposed_holds_of_the_reference(several: list[str]) -> None:
    for value in _proposed(several):
        assert all(_held((BACKWARD, ConstantParam(value=value)), several))


@pytest.mark.parametrize(
    ("now", "message", "cause"),
    [
        (
            UNTURNED,
            "what `first` returns gets to `norm` by no permutation and no index in the loss "
            "of Net; in the reference by transpose(1,2)",
            "axes are exchanged",
        ),
        (
            CUT,
            "nothing that `norm` returns gets to `last` with gradients in the loss of Net; in the "
            "reference it does",
            "detached",
        ),
    ],
)
def test_the_cause_is_told(now: str, message: str, cause: str) -> None:
    monitor = RELATION.monitor(_rule(*TURNED.split()))
    *_, examples = [monitor.observe(window) for window in _windows([now] * 2)]
    explanation = examples.explain(0)
    assert explanation.message == message
    assert explanation.cause is not None
    assert cause in explanation.cause.text


def test_a_rule_is_a_sentence() -> None:
    assert RELATION.describe(_rule(*TURNED.split())) == (
        "parts are given what the same parts return in the loss of Net: the loss from `last`, "
        "`last` from `norm`, `norm` from `first`"
    )
    assert RELATION.severity(_rule(*TURNED.split())) == "warning"
    assert RELATION.needs(_rule(*TURNED.split())).functions == frozenset()


@pytest.mark.parametrize(
    "params",
    [
        (),
        (BACKWARD,),
        (BACKWARD, ConstantParam(value=("Net",))),
        (BACKWARD, ConstantParam(value=("Net", "last"))),
        (BACKWARD, ConstantParam(value=3)),
    ],
)
def test_other_parameters_are_refused(params: tuple[Param, ...]) -> None:
    with pytest.raises(InvariantError, match="expects the backward as APIParam"):
        RELATION.monitor(params)
