"""PaddingTargetsRelation: nothing is learned from padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.losses import BACKWARD
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun

MAX_COUNTED = 0.5
"""Of the padding. A mask may be of another sequence, of which only a part is padding here."""


class PaddingTargetsRelation(Relation):
    """The targets of a loss do not count where a mask of the inputs tells that there is padding.

    ``forall backwards b of a loss that leaves targets out, masks m among the inputs of its model:
    #{i: m[i] is padding and target(b)[i] counts} <= MAX_COUNTED * #{i: m[i] is padding}``. Padding
    is one end of the samples, where another input has the same in all of them, and so have the
    targets. The first failure in a row is excused.

    Catches labels that are not masked where the inputs are padded: a model that learns to predict
    padding, the more of it the longer the longest sample of a batch is. Tokens tell padding by the
    padding_idx of embeddings. Cannot see padding where neither is given, nor losses that are masked
    or weighted by a product.
    """

    name = "PaddingTargetsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        _check(params)
        return _Monitor()

    def describe(self, params: tuple[Param, ...]) -> str:
        _check(params)
        return "targets do not count where a mask of the inputs tells that there is padding"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _check(params)
        wanted = frozenset({("padding", "value")})
        return Plan(functions=frozenset(), attributes={"backward": wanted})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


_PARAMS: tuple[Param, ...] = (BACKWARD,)


def _check(params: tuple[Param, ...]) -> None:
    if params != _PARAMS:
        raise InvariantError(
            f"{PaddingTargetsRelation.name} expects the backward as APIParam, got {params}"
        )


class _Padding(NamedTuple):
    """What is told of a mask at a backward.

    Attributes:
        row: of the backward.
        mask: its path, with the class of the model: ``GPT.attention_mask``.
        operation: that compares predictions with the targets.
        share: of the padding, of which the targets count.
    """

    row: int
    mask: str
    operation: str
    share: float


def _told(window: Window) -> Iterator[_Padding]:
    for row, frame in frames_of(window, "padding"):
        for code, share in zip(
            frame.variables.tolist(), frame.columns["value"].tolist(), strict=True
        ):
            if not np.isnan(share):
                variable = window.catalog.variables[code]
                mask = f"{class_name(variable.owner)}.{variable.name}"
                yield _Padding(row, mask, variable.type, share)


class _Monitor(Monitor):
    def __init__(self) -> None:
        self._excuses: PerRun[dict[tuple[str, str], Excuse]] = PerRun(dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        judged = []
        for one in _told(window):
            excuse = excuses.setdefault((one.mask, one.operation), Excuse())
            if excuse.counts(one.share <= MAX_COUNTED):
                judged.append(one)
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([one.share <= MAX_COUNTED for one in judged], np.bool_),
            lambda index: _explain(judged[index]),
        )


def _explain(padding: _Padding) -> Explanation:
    return Explanation(
        message=f"{padding.share:.0%} of what `{padding.mask}` tells to be padding counts in "
        f"{padding.operation}",
        cause=Cause(
            fact="padding counts",
            subjects=(padding.mask,),
            text=f"the targets of {padding.operation} are not set to its ignore_index where "
            f"`{padding.mask}` tells that there is padding: the model learns to predict padding",
        ),
    )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._is_told = False

    def observe(self, window: Window) -> None:
        self._is_told = self._is_told or any(True for _ in _told(window))

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._is_told:
            yield Hypothesis(relation=PaddingTargetsRelation.name, params=_PARAMS)
