"""SeparateModulesRelation: each part of a model is a module of its own, where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, Hypothesis, Param, Severity, VarNameParam
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
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.params import passing_plan, single
from traincheck_plugin.relations.passing import frames_of, inputs_of

MIN_FORWARDS = 10
"""So many forwards show what a model consists of."""

_ALIAS = VAR_TYPES["alias"]


class SeparateModulesRelation(Relation):
    """A model has each module with parameters under one name, where it had in the reference.

    ``forall forwards f in training of a model of class C: it has no module under several names``.

    Catches ``[Block()] * n`` in place of n blocks, so that all layers are one. Cannot see modules
    of their own that begin alike, nor parameters that are tied.
    """

    name = "SeparateModulesRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_root(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        return f"{_root(params)} has each of its modules under one name"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _root(params)
        aliases = Plan(
            functions=frozenset(), attributes={"forward": frozenset({("alias", "value")})}
        )
        return passing_plan("input").union(aliases)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _root(params: tuple[Param, ...]) -> str:
    """Return the class that a rule is about.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    who = single(SeparateModulesRelation.name, params, VarNameParam)
    if who.var_type != _ALIAS:
        raise InvariantError(
            f"{SeparateModulesRelation.name} expects the aliases of a class, got {params}"
        )
    return who.var_name


class _Model(NamedTuple):
    """What there is of a model that trains.

    Attributes:
        row: of the forward.
        root: class of the model.
        aliases: further names of its modules.
    """

    row: int
    root: str
    aliases: list[str]


def _models(window: Window) -> Iterator[_Model]:
    """Yield the models of the forwards in training."""
    aliases = {
        row: [window.catalog.variables[code].name for code in frame.variables.tolist()]
        for row, frame in frames_of(window, "alias")
    }
    for known in inputs_of(window):
        yield _Model(known.row, class_name(known.root), aliases.get(known.row, []))


class _Monitor(Monitor):
    """Judges the models of one class."""

    def __init__(self, root: str) -> None:
        self._root = root

    def observe(self, window: Window) -> Examples:
        judged = [one for one in _models(window) if one.root == self._root]
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([one.row for one in judged], np.int64),
            np.array([not one.aliases for one in judged], np.bool_),
            lambda index: self._explain(judged[index].aliases),
        )

    def _explain(self, aliases: list[str]) -> Explanation:
        shown = ", ".join(f"`{name}`" for name in aliases[:3]) + ", ..." * (len(aliases) > 3)
        verb, has, own = ("is", "has", "its") if len(aliases) == 1 else ("are", "have", "their")
        return Explanation(
            message=f"{shown} of {self._root} {verb} there under another name already",
            cause=Cause(
                fact="modules are the same",
                subjects=tuple(aliases),
                text=f"{shown} {verb} the same module as one before, and {has} parameters of {own} "
                "own in a healthy run: a list of modules was multiplied, or one was added twice",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._number: Counter[str] = Counter()
        self._refuted: set[str] = set()

    def observe(self, window: Window) -> None:
        for one in _models(window):
            self._number[one.root] += 1
            if one.aliases:
                self._refuted.add(one.root)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for root, number in self._number.items():
            if number >= MIN_FORWARDS and root not in self._refuted:
                who = VarNameParam(var_name=root, var_type=_ALIAS, attr_name="value")
                yield Hypothesis(relation=SeparateModulesRelation.name, params=(who,))
