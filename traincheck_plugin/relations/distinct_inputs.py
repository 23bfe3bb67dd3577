"""DistinctInputsRelation: samples that models are given differ where they did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
    VarTypeParam,
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
from traincheck_plugin.relations.naming import class_name, short
from traincheck_plugin.relations.params import pair, passing_plan
from traincheck_plugin.relations.passing import frames_of, inputs_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import (
    SAMPLE,
    SAMPLES_PLAN,
    given,
    keys_of,
    samples_named,
)
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

ANY_TWO = VarTypeParam(var_type=SAMPLE, attr_name="data")
"""Speaks of all models: of what one is given, not all samples are the same."""

MIN_OF_ONE = 8
"""Samples that are the same where all are: a few may be by chance."""

IN_A_ROW = 2
"""Forwards of a model with one sample only until that is no coincidence."""

_PREDICTED = ".prediction"
"""What the samples are called that a loss compares with its targets, after its operation."""


class DistinctInputsRelation(Relation):
    """The samples that the models of a class, or a loss, are given differ from one another.

    ``forall windows w: share of the samples of w that are in w twice <= MAX_AGAIN``, and ``forall
    windows v, w that follow each other: share of the samples of w that are in v <= MAX_AGAIN``,
    where it was `MAX_USUAL` at most in all of the reference. Of two epochs, nothing is said where
    nearly all are. Samples are the rows of tensors of real numbers: of inputs, and of the targets
    and the predictions of a loss. The first failure in a row is excused. Of all pipelines, ``forall
    training forwards f of a model that is given `MIN_OF_ONE` samples or more: not (in each of its
    last `IN_A_ROW`, with f, all samples were the same)``. A sample is what it is in all arguments
    together, of which one at least is not made of a single number.

    Catches two views of a sample that are one, one stream of several that begins anew for each
    batch, a noise to be predicted that is always the same, predictions that are picked by
    indices which repeat, and arrays that are changed in place after they were stored. Cannot see
    samples that are nearly the same.
    """

    name = "DistinctInputsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        rule = _rule(params)
        return _NotOne() if rule is None else _Monitor(*rule)

    def describe(self, params: tuple[Param, ...]) -> str:
        rule = _rule(params)
        if rule is None:
            return "not all samples that a model is given are the same"
        root, which = rule
        what = _what(root)
        if which == WITHIN:
            return f"the {what} is given for one batch differ from one another"
        return f"the {what} is given are not those of the batch before"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        is_law = _rule(params) is None
        ranges = passing_plan("input", tensors=("value", "lowest", "highest", "negative"))
        return SAMPLES_PLAN.union(ranges) if is_law else SAMPLES_PLAN

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _rule(params: tuple[Param, ...]) -> tuple[str, str] | None:
    """Return a class of models, and what a rule is about; None where it is about all models.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if params == (ANY_TWO,):
        return None
    who, which = pair(DistinctInputsRelation.name, params, VarNameParam, ConstantParam)
    if who.var_type != SAMPLE or which.value not in (WITHIN, BETWEEN):
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
    found: dict[tuple[int, str], tuple[int, list[list[int]]]] = {}
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
            found[key] = row, [*keys, keys_of(frame)]
    return [
        (root, row, np.concatenate(keys).astype(np.uint64))
        for (_, root), (row, keys) in found.items()
    ]


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


class _Model(NamedTuple):
    """All samples that a model is given in a forward.

    Attributes:
        row: of the forward.
        label: of the model.
        number: of the samples.
        is_one: whether all of them are the same.
    """

    row: int
    label: str
    number: int
    is_one: bool


def _models(window: Window) -> Iterator[_Model]:
    """Yield the models that are given several samples, of which all is known."""
    arguments: dict[int, list[list[int]]] = {}
    for one in given(window):
        if one.trains:
            arguments.setdefault(one.row, []).append(one.keys)
    if not arguments:
        return
    for known in inputs_of(window):
        keys = arguments.get(known.row, [])
        items = window.catalog.signature(int(window.calls.inputs[known.row]))
        tensors = [item.shape for item in items if item.shape is not None]
        number = min(map(len, keys), default=0)
        # What is told of fewer arguments may differ in the others.
        if number < MIN_OF_ONE or len(keys) < len(tensors):
            continue
        values = known.values
        varies = any(low < high for low, high in zip(values.lowest, values.highest, strict=True))
        yield _Model(known.row, known.root, number, all(len(set(k)) == 1 for k in keys) and varies)


class _NotOne(Monitor):
    """Judges whether models are given more than one sample."""

    def __init__(self) -> None:
        self._excuses = PerRun[dict[str, Excuse]](dict)

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            return NO_EXAMPLES
        excuses = self._excuses.of(window.catalog)
        judged = [
            one
            for one in _models(window)
            if excuses.setdefault(one.label, Excuse(IN_A_ROW - 1)).counts(not one.is_one)
        ]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([not one.is_one for one in judged], np.bool_),
            lambda index: self._explain(judged[index]),
        )

    def _explain(self, one: _Model) -> Explanation:
        who = short(class_name(one.label))
        return Explanation(
            message=f"all {one.number} samples that {who} was given are the same, as in the "
            "forward before",
            cause=Cause(
                fact="the same samples again",
                subjects=(who,),
                text=f"{who} learns from one sample over and over: an array that is changed in "
                "place was stored without a copy, or one sample is expanded to a batch",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._has_models = False
        self._given = PerRun(_Given)
        self._differing: dict[tuple[str, str], int] = {}
        self._refuted: set[tuple[str, str]] = set()

    def observe(self, window: Window) -> None:
        self._has_models |= any(_models(window))
        for root, one in self._given.of(window.catalog).observe(window):
            rule = root, one.which
            if one.share() > MAX_USUAL:
                self._refuted.add(rule)
            self._differing[rule] = self._differing.get(rule, 0) + 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._has_models:
            yield Hypothesis(relation=DistinctInputsRelation.name, params=(ANY_TWO,))
        for (root, which), number in self._differing.items():
            if number >= MIN_OCCURRENCES and (root, which) not in self._refuted:
                yield Hypothesis(
                    relation=DistinctInputsRelation.name,
                    params=(samples_named(root), ConstantParam(value=which)),
                )
