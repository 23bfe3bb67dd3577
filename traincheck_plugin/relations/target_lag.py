"""TargetLagRelation: what a loss asks for is where it was in what the model is given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

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
    no_explanation,
)
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.losses import BACKWARD, looks_back, losses
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NOWHERE

MIN_OCCURRENCES = 10
"""Backward passes of the reference that show where the targets are."""

NEXT = 1
"""Places that a class is further on in an input if it is what comes next."""

_TARGET = VAR_TYPES["target"]
_CLASSES = "nll_loss"
_NOWHERE: Literal["nowhere"] = "nowhere"


class TargetLagRelation(Relation):
    """The targets of a loss are as many places after the same in an input as they were.

    ``forall backward passes b, inputs x of that name: target(b)[.., i] == x[.., i + k] for all i``,
    with the one k that all backward passes of the reference showed; and ``forall b, inputs x of
    that model, k: target(b)[.., i] != x[.., i + k] for some i``; where they were in some inputs in
    the reference, for the other ones and k = 0. Of all pipelines, of classes that are in inputs x
    of a model k(x) places further on: ``forall training steps: min k(x) <= NEXT``, and ``forall
    backwards whose attention hides from each position all that comes later: k(x) != 0 for some x``.
    The inputs are those since the optimizer stepped last. The first failure in a row is excused.

    Catches labels that are shifted twice, decoders that are given what they should predict, and
    windows of a series that overlap with their forecast. Cannot see targets that the graph of the
    loss does not keep, as those of a difference that is squared by hand. Says nothing of a backward
    where the target has few different values, or is not found where it was in the reference, and
    nowhere else either: masks and noise do that.
    """

    name = "TargetLagRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        if params == _PARAMS:
            return _NextMonitor()
        return _CausalMonitor() if params == _CAUSAL else _Monitor(_rule(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        if params == _PARAMS:
            return "classes that come later in an input are what comes next in it, not what follows"
        if params == _CAUSAL:
            return "where attention hides what comes later, classes are not their own inputs"
        rule = _rule(params)
        if rule.lag is None:
            return f"the targets of {rule.operation} are {rule.nowhere()}"
        return f"the targets of {rule.operation} are {_where(rule.lag, rule.name)}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        if params not in (_PARAMS, _CAUSAL):
            _rule(params)
        return Plan(
            functions=frozenset(), attributes={"backward": frozenset({("target", "value")})}
        )

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


_PARAMS: tuple[Param, ...] = (BACKWARD,)
_CAUSAL: tuple[Param, ...] = (replace(BACKWARD, argument="hides"),)
"""Those of the hypotheses about all pipelines."""


def _where(lag: int, name: str) -> str:
    return f"`{name}` shifted by {lag}" if lag else f"the same as `{name}`"


class _Rule(NamedTuple):
    """A hypothesis.

    Attributes:
        name: of the input, ``GPT.input_ids``; of the model where the targets are nowhere.
        operation: that compares predictions with the targets.
        lag: how many places further on they are; None for nowhere.
        known: paths of the inputs of the model in which they are all the same.
    """

    name: str
    operation: str
    lag: int | None
    known: tuple[str, ...] = ()

    def nowhere(self) -> str:
        """Return the words for where the targets are not."""
        if not self.known:
            return f"not among the inputs of {self.name}"
        names = ", ".join(f"`{path}`" for path in self.known)
        return f"not among the inputs of {self.name} other than {names}"

    def hypothesis(self) -> Hypothesis:
        lag = (_NOWHERE, *self.known) if self.lag is None else (self.lag,)
        return Hypothesis(
            relation=TargetLagRelation.name,
            params=(
                VarNameParam(var_name=self.name, var_type=_TARGET, attr_name="value"),
                ConstantParam(value=(self.operation, *lag)),
            ),
        )


def _rule(params: tuple[Param, ...]) -> _Rule:
    """Return what a hypothesis says.

    Raises:
        InvariantError: it is none of this relation.
    """
    relation = TargetLagRelation.name
    who, claim = pair(relation, params, VarNameParam, ConstantParam)
    match claim.value:
        case (str(operation), int(lag)) if who.var_type == _TARGET:
            return _Rule(who.var_name, operation, lag)
        case (str(operation), "nowhere", *known) if who.var_type == _TARGET:
            return _Rule(who.var_name, operation, None, tuple(map(str, known)))
    raise InvariantError(
        f"{relation} expects a target, an operation and the number of places further on, or "
        f"{_NOWHERE!r}; got {params}"
    )


class _Seen(NamedTuple):
    """Where the targets of one operation are in one input, at one backward.

    Attributes:
        model: class of the model that was given the input.
        path: of the input among the arguments.
        operation: that compares predictions with the targets.
        lag: how many places further on they are; `NOWHERE`, or NaN where that is not known.
    """

    model: str
    path: str
    operation: str
    lag: float

    @property
    def name(self) -> str:
        return f"{self.model}.{self.path}" if self.path else self.model


def _seen(window: Window) -> Iterator[tuple[int, list[_Seen]]]:
    """Yield the row of each backward, and what is known of its targets."""
    for row, frame in frames_of(window, "target"):
        variables = [window.catalog.variables[code] for code in frame.variables.tolist()]
        yield (
            row,
            [
                _Seen(class_name(variable.owner), variable.name, variable.type, lag)
                for variable, lag in zip(variables, frame.columns["value"].tolist(), strict=True)
            ],
        )


class _Monitor(Monitor):
    def __init__(self, rule: _Rule) -> None:
        self._rule = rule
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        judged = []
        for row, seen in _seen(window):
            wrong = self._judge(seen)
            if wrong is not None and self._excuse.counts(not wrong):
                judged.append((row, wrong))
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([row for row, _ in judged], np.int64),
            np.array([not wrong for _, wrong in judged], np.bool_),
            lambda index: self._explain(judged[index][1]),
        )

    def _judge(self, seen: list[_Seen]) -> list[_Seen] | None:
        """Return what is where it should not be; None where that is not known."""
        rule = self._rule
        own = [one for one in seen if one.operation == rule.operation]
        if rule.lag is None:
            own = [one for one in own if one.model == rule.name and one.path not in rule.known]
            found = [one for one in own if math.isfinite(one.lag)]
            if rule.known:
                # They may follow what a decoder is given besides.
                found = [one for one in found if one.lag == 0]
            is_known = bool(own) and not any(math.isnan(one.lag) for one in own)
            return found if found or is_known else None
        own = [one for one in own if one.name == rule.name and math.isfinite(one.lag)]
        # Of several inputs of the name the target may be of any.
        if any(one.lag == rule.lag for one in own):
            return []
        return own or None

    def _explain(self, wrong: list[_Seen]) -> Explanation:
        if not wrong:
            return no_explanation(0)
        rule, found = self._rule, wrong[0]
        lag = int(found.lag)
        expected = rule.nowhere() if rule.lag is None else _where(rule.lag, rule.name)
        return Explanation(
            message=(
                f"the targets of {rule.operation} are {_where(lag, found.name)}; in the reference "
                f"they are {expected}"
            ),
            cause=_cause(rule.lag, lag, found.name),
        )


class _NextMonitor(Monitor):
    """Judges training steps: some trunk may have a head for each of the next classes."""

    def __init__(self) -> None:
        self._excuses: PerRun[dict[str, Excuse]] = PerRun(dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        steps = window.catalog.contexts.column("step")
        nearest: dict[tuple[str, int], tuple[int, _Seen]] = {}
        for row, one in _classes(window):
            key = one.model, int(steps[window.calls.context[row]])
            if key not in nearest or one.lag < nearest[key][1].lag:
                nearest[key] = row, one
        judged = [
            (row, one)
            for row, one in nearest.values()
            if excuses.setdefault(one.model, Excuse()).counts(one.lag <= NEXT)
        ]
        if not judged:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            found = judged[index][1]
            lag = int(found.lag)
            return Explanation(
                message=f"the targets of {found.operation} are {_where(lag, found.name)}, expected "
                f"by {NEXT}",
                cause=_cause(NEXT, lag, found.name),
            )

        return Examples.of_calls(
            window,
            np.array([row for row, _ in judged], np.int64),
            np.array([one.lag <= NEXT for _, one in judged], np.bool_),
            explain,
        )


class _CausalMonitor(Monitor):
    """Judges losses whose attention hides from each position what comes later."""

    def __init__(self) -> None:
        self._excuses: PerRun[dict[str, Excuse]] = PerRun(dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        judged = [
            (row, copied)
            for row, copied in _copied(window)
            if excuses.setdefault(copied[0].model, Excuse()).counts(copied[0].lag != 0)
        ]
        if not judged:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            found = judged[index][1][0]
            return Explanation(
                message=f"the targets of {found.operation} are {_where(0, found.name)}, and "
                "attention shows it to the model",
                cause=_cause(NEXT, 0, found.name),
            )

        return Examples.of_calls(
            window,
            np.array([row for row, _ in judged], np.int64),
            np.array([copied[0].lag != 0 for _, copied in judged], np.bool_),
            explain,
        )


def _copied(window: Window) -> Iterator[tuple[int, list[_Seen]]]:
    """Yield the rows of backwards whose attention looks back, with where their classes are.

    Those that are not at their own places come first.
    """
    found: dict[int, list[_Seen]] = {}
    for row, one in _classes(window):
        found.setdefault(row, []).append(one)
    if found:
        for loss in losses(window):
            if loss.row in found and looks_back(loss.settings):
                yield loss.row, sorted(found[loss.row], key=lambda one: one.lag == 0)


def _classes(window: Window) -> Iterator[tuple[int, _Seen]]:
    """Yield the rows of backwards with the classes that are known to be in an input."""
    for row, seen in _seen(window):
        for one in seen:
            if one.operation.startswith(_CLASSES) and math.isfinite(one.lag):
                yield row, one


def _cause(expected: int | None, lag: int, name: str) -> Cause:
    return Cause(fact="targets are out of place", subjects=(name,), text=_why(expected, lag, name))


def _why(expected: int | None, lag: int, name: str) -> str:
    if expected is None or lag == 0:
        return f"`{name}` holds what the model should predict: it only has to copy it"
    if lag == 2 * expected:
        return f"the targets are shifted twice against `{name}`"
    return f"the targets are shifted against `{name}` by {lag}, not by {expected}"


class _Proposer(Proposer):
    """Proposes the lags that were always the same."""

    def __init__(self) -> None:
        self._lags: dict[tuple[str, str], Counter[float]] = {}
        # By model and operation: where the targets were, and of other inputs, how often not.
        self._present: dict[tuple[str, str], set[str]] = {}
        self._absent: dict[tuple[str, str], Counter[str]] = {}
        self._has_classes = self._looks_back = False

    def observe(self, window: Window) -> None:
        self._has_classes = self._has_classes or any(True for _ in _classes(window))
        self._looks_back = self._looks_back or any(True for _ in _copied(window))
        for _, seen in _seen(window):
            inputs: dict[tuple[str, str], set[float]] = {}
            models: dict[tuple[str, str], dict[str, set[float]]] = {}
            for one in seen:
                if math.isfinite(one.lag):
                    inputs.setdefault((one.name, one.operation), set()).add(one.lag)
                paths = models.setdefault((one.model, one.operation), {})
                paths.setdefault(one.path, set()).add(one.lag)
            for name, lags in inputs.items():
                self._lags.setdefault(name, Counter()).update(lags)
            for name, paths in models.items():
                found = {path for path, lags in paths.items() if any(map(math.isfinite, lags))}
                self._present.setdefault(name, set()).update(found)
                # An input that is too large to be looked at may hold them, if no other does.
                if found or not any(math.isnan(lag) for lags in paths.values() for lag in lags):
                    others = [path for path, lags in paths.items() if lags == {NOWHERE}]
                    self._absent.setdefault(name, Counter()).update(others)

    def hypotheses(self) -> Iterable[Hypothesis]:
        if self._has_classes:
            yield Hypothesis(relation=TargetLagRelation.name, params=_PARAMS)
        if self._looks_back:
            yield Hypothesis(relation=TargetLagRelation.name, params=_CAUSAL)
        for (name, operation), lags in self._lags.items():
            [(lag, number), *others] = lags.most_common()
            if not others and number >= MIN_OCCURRENCES:
                yield _Rule(name, operation, int(lag)).hypothesis()
        for (name, operation), absent in self._absent.items():
            known = self._present[name, operation]
            numbers = [number for path, number in absent.items() if path not in known]
            if max(numbers, default=0) >= MIN_OCCURRENCES:
                yield _Rule(name, operation, None, tuple(sorted(known))).hypothesis()
