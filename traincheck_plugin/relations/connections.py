"""ConnectionsRelation: what the parts of a model return gets to where it got in the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.losses import BACKWARD, MIN_BACKWARDS, EarlyLosses, whose
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import BY, FROM, MORE


class ConnectionsRelation(Relation):
    """The parts of a model are given what the same parts return, in the same arrangement.

    ``forall backwards b after a forward of C, in the first steps that have one, forall connections
    p < q : o that are named, with p and q in the graph of b: p is given what q returns, over other
    parts or not; and where it is by what computes the same as o: moved as by o``. Parts are modules
    with parameters of their own, and the loss; what moves values are permutations, transposes,
    flips and choices by an index. Nothing is said where there are too many ways to tell them all.
    Named are the connections that all losses of the reference have
    that have p. Of one that the run had once nothing is said any longer; the first failure in a row
    is excused, and so is what follows when a state was loaded into an optimizer.

    Catches a permute that is missing or has other axes, outputs that are not put back in the order
    of their samples, a straight-through estimator that is left out, and a skip that leads
    elsewhere. Cannot see what compiled code and reentrant checkpoints hide, nor what happens to
    data before the first part.
    """

    name = "ConnectionsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_known(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        after, named = _known(params)
        several = list(dict.fromkeys(f"{_part(one.part)} from `{one.source}`" for one in named))
        shown = ", ".join(several[:3]) + (", ..." if len(several) > 3 else "")
        return f"parts are given what the same parts return in {whose(after)}: {shown}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _known(params)
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


_MOVES = "("
"""Is in the name of an operation that puts values elsewhere."""


class _Connection(NamedTuple):
    """That something is given what another part returns.

    Attributes:
        part: that is given it; "" is the loss.
        source: that returns it.
        way: the operations between them.
    """

    part: str
    source: str
    way: tuple[str, ...]

    @property
    def moves(self) -> tuple[str, ...]:
        """Operations that put values elsewhere."""
        return tuple(one for one in self.way if _MOVES in one)

    @property
    def rest(self) -> tuple[str, ...]:
        """The other operations."""
        return tuple(one for one in self.way if _MOVES not in one)


def _known(params: tuple[Param, ...]) -> tuple[str, tuple[_Connection, ...]]:
    """Return a class, and the connections that are named.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if len(params) == 2 and params[0] == BACKWARD and isinstance(params[1], ConstantParam):
        value = params[1].value
        if isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, str) for v in value):
            after, *named = value
            if all(FROM in one for one in named):
                return after, tuple(map(_connection, named))
    raise InvariantError(
        f"{ConnectionsRelation.name} expects the backward as APIParam, and a class with "
        f"connections as ConstantParam, got {params}"
    )


def _connection(text: str) -> _Connection:
    part, _, rest = text.partition(FROM)
    source, *way = rest.split(BY)
    return _Connection(part, source, tuple(way))


def _part(name: str) -> str:
    return f"`{name}`" if name else "the loss"


class _Graph(NamedTuple):
    """The parts in the graph of a loss.

    Attributes:
        connections: all that there are.
        parts: that are given something.
        sources: of each part those that are next to it.
        present: all parts.
        open: parts that have other sources besides.
    """

    connections: frozenset[_Connection]
    parts: frozenset[str]
    sources: Mapping[str, frozenset[str]]
    present: frozenset[str]
    open: frozenset[str]

    def leads(self, source: str, part: str) -> bool | None:
        """Return whether something of *source* gets to *part*; None where that is not known."""
        known = {part}
        waiting = [part]
        while waiting:
            for one in self.sources.get(waiting.pop(), ()):
                if one == source:
                    return True
                if one not in known:
                    known.add(one)
                    waiting.append(one)
        return False if known.isdisjoint(self.open) else None

    def between(self, one: _Connection) -> list[_Connection]:
        """Return the connections of the parts of *one*."""
        return sorted(other for other in self.connections if other[:2] == one[:2])

    def has(self, one: _Connection) -> bool | None:
        """Return whether *one* is here, or leads over other parts; None where that is not told."""
        if one.part not in self.parts or one.source not in self.present:
            return None
        if one in self.connections:
            return True
        between = self.between(one)
        if not between:
            return self.leads(one.source, one.part)
        # Another kernel, or an edited function, has permutations of its own.
        alike = [other.moves for other in between if other.rest == one.rest]
        return one.moves in alike if alike else None


@lru_cache(maxsize=256)
def _parse(text: str) -> _Graph:
    told = frozenset(map(_connection, text.split()))
    connections = frozenset(one for one in told if one.source != MORE)
    sources: dict[str, set[str]] = {}
    for one in connections:
        sources.setdefault(one.part, set()).add(one.source)
    return _Graph(
        connections,
        frozenset(sources),
        {part: frozenset(several) for part, several in sources.items()},
        frozenset(sources).union(*sources.values()),
        frozenset(one.part for one in told - connections),
    )


class _Monitor(Monitor):
    """Judges the losses after one class.

    Args:
        after: the class.
        named: connections of the reference.
    """

    def __init__(self, after: str, named: tuple[_Connection, ...]) -> None:
        self._after = after
        self._named = frozenset(named)
        self._early = PerRun(EarlyLosses)
        self._waiting: PerRun[set[_Connection]] = PerRun(lambda: set(named))
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        rows, failed, graphs = [], [], []
        waiting = self._waiting.of(window.catalog)
        for loss in self._early.of(window.catalog).among(window):
            if loss.after != self._after or not loss.connections:
                continue
            graph = _parse(loss.connections)
            told = {one: held for one in self._named if (held := graph.has(one)) is not None}
            waiting -= {one for one, held in told.items() if held}
            missing = sorted(waiting.intersection(told))
            if told and self._excuse.counts(not missing):
                rows.append(loss.row)
                failed.append(missing)
                graphs.append(graph)
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array([not missing for missing in failed], np.bool_),
            lambda index: self._explain(failed[index][0], graphs[index]),
        )

    def _explain(self, missing: _Connection, graph: _Graph) -> Explanation:
        part, source = _part(missing.part), f"`{missing.source}`"
        subjects = tuple(filter(None, missing[:2]))
        between = [one for one in graph.between(missing) if one.rest == missing.rest]
        if not between:
            return Explanation(
                message=f"nothing that {source} returns gets to {part} with gradients in "
                f"{whose(self._after)}; in the reference it does",
                cause=Cause(
                    fact="another connection",
                    subjects=subjects,
                    text=f"what {source} returns does not get to {part}: it is not used there, was "
                    "detached, or is replaced by something else",
                ),
            )
        return Explanation(
            message=f"what {source} returns gets to {part} by {_shown(between[0].moves)} in "
            f"{whose(self._after)}; in the reference by {_shown(missing.moves)}",
            cause=Cause(
                fact="another arrangement",
                subjects=subjects,
                text=f"on the way from {source} to {part} values are put elsewhere than in the "
                "reference: axes are exchanged, or samples or positions taken in another order, "
                "there or here",
            ),
        )


def _shown(moves: tuple[str, ...]) -> str:
    names = (move.removesuffix("()") for move in moves)
    return ", ".join(names) if moves else "no permutation and no index"


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._found: dict[str, Counter[_Connection]] = {}
        self._parts: dict[str, Counter[str]] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            if loss.connections:
                graph = _parse(loss.connections)
                self._found.setdefault(loss.after, Counter()).update(graph.connections)
                self._parts.setdefault(loss.after, Counter()).update(graph.parts)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for after, found in self._found.items():
            parts = self._parts[after]
            named = [
                "".join((one.part, FROM, one.source, *(BY + operation for operation in one.way)))
                for one, number in sorted(found.items())
                if number == parts[one.part] >= MIN_BACKWARDS
            ]
            if named:
                value = ConstantParam(value=(after, *named))
                yield Hypothesis(relation=ConnectionsRelation.name, params=(BACKWARD, value))
