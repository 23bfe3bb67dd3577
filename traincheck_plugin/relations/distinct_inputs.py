"""DistinctInputsRelation: samples that models are given differ where they did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
)
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
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import Array

MIN_OCCURRENCES = 10
"""So many comparisons of the reference show that samples differ."""

MIN_SAMPLES = 4
"""Of fewer nothing is said."""

MAX_USUAL = 0.05
"""Share of the samples that are others' equals in the reference: duplicates in the data."""

MAX_AGAIN = 0.25
"""Share of those that may be."""

ALL = 0.95
"""Share of those that are all, or nearly."""

WITHIN, BETWEEN = "within", "between"
"""A rule is about the samples of one window, or about those of two that follow each other."""

_SAMPLE = VAR_TYPES["sample"]

_PREDICTED = ".prediction"
"""What the samples are called that a loss compares with its targets, after its operation."""


class DistinctInputsRelation(Relation):
    """The samples that the models of a class, or a loss, are given differ from one another.

    ``forall windows w: share of the samples of w that are in w twice <= MAX_AGAIN``, and ``forall
    windows v, w that follow each other: share of the samples of w that are in v <= MAX_AGAIN``,
    where it was `MAX_USUAL` at most in all of the reference. Of two epochs, nothing is said where
    nearly all are. Samples are the rows of tensors of real numbers: of inputs, and of the targets
    and the predictions of a loss. The first failure in a row is excused.

    Catches two views of a sample that are one, one stream of several that begins anew for each
    batch, a noise to be predicted that is always the same, and predictions that are picked by
    indices which repeat. Cannot see samples that are nearly the same.
    """

    name = "DistinctInputsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        root, which = _rule(params)
        return _Monitor(root, which)

    def describe(self, params: tuple[Param, ...]) -> str:
        root, which = _rule(params)
        what = _what(root)
        if which == WITHIN:
            return f"the {what} is given for one batch differ from one another"
        return f"the {what} is given are not those of the batch before"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _rule(params)
        return Plan(functions=frozenset(), attributes={"forward": frozenset({("sample", "data")})})

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _rule(params: tuple[Param, ...]) -> tuple[str, str]:
    """Return a class of models, and what a rule is about.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    who, which = pair(DistinctInputsRelation.name, params, VarNameParam, ConstantParam)
    if who.var_type != _SAMPLE or which.value not in (WITHIN, BETWEEN):
        raise InvariantError(
            f"{DistinctInputsRelation.name} expects the class of a model, and {WITHIN!r} or "
            f"{BETWEEN!r}; got {params}"
        )
    return who.var_name, str(which.value)


def _what(root: str) -> str:
    """Return what the samples are called, and what is given them."""
    operation = root.removesuffix(_PREDICTED)
    return f"predictions that {operation}" if operation != root else f"samples that {short(root)}"


class _Comparison(NamedTuple):
    """How many samples of a class are compared, and are the same.

    Attributes:
        row: of the last forward that was given some.
        which: what a rule about them is about.
        number: of samples.
        again: number of those that are there, or were there, already.
    """

    row: int
    which: str
    number: int
    again: int

    def share(self) -> float:
        return self.again / self.number


class _Given:
    """Follows what models are given from window to window."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, Array]] = {}

    def observe(self, window: Window) -> Iterator[tuple[str, _Comparison]]:
        """Yield the comparisons of a window, each with the class of the models."""
        if not window.observed:
            self._before.clear()
            return
        epochs = window.catalog.contexts.column("epoch")
        for root, row, keys in _samples(window):
            number = len(keys)
            unique = np.unique(keys)
            before = self._before.get(root)
            epoch = int(epochs[window.calls.context[row]])
            self._before[root] = epoch, unique
            if number >= MIN_SAMPLES:
                yield root, _Comparison(row, WITHIN, number, number - len(unique))
                if before is not None:
                    again = int(np.count_nonzero(np.isin(keys, before[1])))
                    # Where an epoch has one batch, all samples come again.
                    if epoch == before[0] or again < ALL * number:
                        yield root, _Comparison(row, BETWEEN, number, again)


def _samples(window: Window) -> list[tuple[str, int, Array]]:
    """Return the samples of each class in each window, with the row of the last forward."""
    found: dict[tuple[int, str], tuple[int, list[Array]]] = {}
    enabled = window.catalog.contexts.column("grad_enabled")[window.calls.context]
    for row, frame in frames_of(window, "sample"):
        if "value" not in frame.columns:
            variable = window.catalog.variables[int(frame.variables[0])]
            if not enabled[row] or "float" not in variable.type:
                continue
            position = int(window.position_of(np.array([row]))[0])
            is_prediction = variable.name == "prediction" and "#" not in variable.owner
            key = position, variable.owner.partition("#")[0] + _PREDICTED * is_prediction
            _, keys = found.get(key, (row, []))
            found[key] = row, [*keys, frame.columns["data"]]
    return [(root, row, np.concatenate(keys)) for (_, root), (row, keys) in found.items()]


class _Monitor(Monitor):
    """Judges the samples that models of one class are given.

    Args:
        root: the class.
        which: what the rule is about.
    """

    def __init__(self, root: str, which: str) -> None:
        self._root = root
        self._which = which
        self._given = PerRun(_Given)
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        judged: list[_Comparison] = []
        for root, one in self._given.of(window.catalog).observe(window):
            is_own = root == self._root and one.which == self._which
            if is_own and self._excuse.counts(one.share() <= MAX_AGAIN):
                judged.append(one)
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([one.share() <= MAX_AGAIN for one in judged], np.bool_),
            lambda index: self._explain(judged[index]),
        )

    def _explain(self, one: _Comparison) -> Explanation:
        who = short(self._root.removesuffix(_PREDICTED))
        shown = f"{one.again} of {one.number} {_what(self._root)} was given"
        if self._root.endswith(_PREDICTED):
            when = "for one batch are there twice"
            message = (
                f"{shown} {when if self._which == WITHIN else 'are those of the batch before'}"
            )
            text = (
                f"{who} is given the same prediction for several samples: they are picked by "
                "indices that repeat, or do not depend on the sample any longer"
            )
        elif self._which == WITHIN:
            message = f"{shown} for one batch are there twice"
            text = (
                f"{who} sees samples twice where a healthy run has two views, or two batches: one "
                "is used in place of the other, or both were made with the same random numbers"
            )
        else:
            message = f"{shown} are those of the batch before"
            text = (
                f"a part of what {who} is given is the same for each batch: its stream begins "
                "anew, or is not moved on"
            )
        return Explanation(
            message=message,
            cause=Cause(fact="the same samples again", subjects=(who,), text=text),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._given = PerRun(_Given)
        self._differing: dict[tuple[str, str], int] = {}
        self._refuted: set[tuple[str, str]] = set()

    def observe(self, window: Window) -> None:
        for root, one in self._given.of(window.catalog).observe(window):
            rule = root, one.which
            if one.share() > MAX_USUAL:
                self._refuted.add(rule)
            self._differing[rule] = self._differing.get(rule, 0) + 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        for (root, which), number in self._differing.items():
            if number >= MIN_OCCURRENCES and (root, which) not in self._refuted:
                yield Hypothesis(
                    relation=DistinctInputsRelation.name,
                    params=(
                        VarNameParam(var_name=root, var_type=_SAMPLE, attr_name="data"),
                        ConstantParam(value=which),
                    ),
                )
