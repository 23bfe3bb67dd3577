"""ConsistencyRelation: two attributes of variables are equal at the same moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
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
from traincheck_plugin.relations.frames import place
from traincheck_plugin.relations.moments import moments
from traincheck_plugin.relations.naming import describe_variables
from traincheck_plugin.relations.params import attribute_plan, pair
from traincheck_plugin.vocabulary import NONE, Array, Bool, Int32, Int64

PARAMETER = VAR_TYPES["parameter"]

WITHIN = (
    VarTypeParam(var_type=PARAMETER, attr_name="grad_dtype"),
    VarTypeParam(var_type=PARAMETER, attr_name="dtype"),
)
TOLD = (
    VarTypeParam(var_type=PARAMETER, attr_name="module_requires_grad"),
    VarTypeParam(var_type=PARAMETER, attr_name="requires_grad"),
)
"""Attributes that may be equal within each variable of a type."""

_WHY = {
    "module_requires_grad": ": requires_grad = ... sets an attribute of a module, which is none of "
    "its parameters; requires_grad_(...) sets theirs",
}
"""What is known of how one came to differ."""


class ConsistencyRelation(Relation):
    """An attribute of V equals an attribute of W at every moment that shows both.

    ``forall frames f: x(v, f) = y(w, f)``: for two variables of a model, such as tied weights, or
    within each variable of a type, such as the dtypes of a parameter and of its gradient, or what
    its module and it say of whether it requires one.

    Catches an output layer that was tied to the embedding and no longer is, and a part that was to
    be frozen, or trained, by an attribute of its module. Cannot see variables that are equal
    because neither changes: those are not proposed.
    """

    name = "ConsistencyRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        if len(params) == 2 and isinstance(params[0], VarNameParam):
            v, w = pair(self.name, params, VarNameParam, VarNameParam)
            if (v.var_type, v.attr_name) != (w.var_type, w.attr_name):
                raise InvariantError(
                    f"{self.name} compares one attribute of two variables of one type, "
                    f"got {v.attr_name} of {v.var_type} and {w.attr_name} of {w.var_type}"
                )
            return _TiedMonitor(v, w)
        first, second = pair(self.name, params, VarTypeParam, VarTypeParam)
        if first.var_type != second.var_type:
            raise InvariantError(
                f"{self.name} compares attributes within one type of variable, "
                f"got {first.var_type!r} and {second.var_type!r}"
            )
        return _WithinMonitor(first, second)

    def describe(self, params: tuple[Param, ...]) -> str:
        if isinstance(params[0], VarNameParam):
            v, w = pair(self.name, params, VarNameParam, VarNameParam)
            return f"`{v.var_name}` and `{w.var_name}` have the same {v.attr_name}"
        x, y = pair(self.name, params, VarTypeParam, VarTypeParam)
        return f"{x.attr_name} equals {y.attr_name} in every {x.var_type}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        plan = Plan.nothing()
        for param in params:
            if isinstance(param, VarNameParam | VarTypeParam):
                about = VarTypeParam(var_type=param.var_type, attr_name=param.attr_name)
                plan = plan.union(attribute_plan(about, ("step",)))
        return plan

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical" if isinstance(params[0], VarNameParam) else "warning"


def _examples(
    window: Window,
    shown: Sequence[tuple[Int64, Bool]],
    explain: Callable[[int, int], Explanation],
) -> Examples:
    """Build the examples that are frames.

    Args:
        window: that they are of.
        shown: positions of frames, and whether they hold.
        explain: explains one, given its number in *shown* and there.
    """
    if not shown:
        return NO_EXAMPLES
    positions = np.concatenate([positions for positions, _ in shown])
    holds = np.concatenate([holds for _, holds in shown])
    order = np.argsort(positions)
    positions, holds = positions[order], holds[order]
    calls = window.calls
    rows, context, sequence = place(window, positions)
    known = rows >= 0
    source, time_ns = np.full(len(rows), NONE, np.int32), np.zeros(len(rows), np.int64)
    source[known], time_ns[known] = calls.source[rows[known]], calls.end_ns[rows[known]]

    def explained(index: int) -> Explanation:
        number = int(order[index])
        for part, (of_part, _) in enumerate(shown):
            if number < len(of_part):
                return explain(part, number)
            number -= len(of_part)
        raise IndexError(index)

    return Examples(
        holds=holds,
        context=context,
        source=source,
        sequence=sequence,
        time_ns=time_ns,
        explain=explained,
        position=None
        if window.joint is None
        else np.searchsorted(window.joint.frames, positions, side="right") - 1,
    )


class _WithinMonitor(Monitor):
    """Codes of dtypes index one table, so they compare as numbers."""

    def __init__(self, first: VarTypeParam, second: VarTypeParam) -> None:
        self._first = first
        self._second = second

    def observe(self, window: Window) -> Examples:
        shown, unlike_of, known_of = [], [], []
        for part in moments(window, self._first):
            if not part.has(self._second.attr_name):
                continue
            first = part.column(self._first.attr_name)
            second = part.column(self._second.attr_name)
            known = (first != NONE) & (second != NONE)
            judged = known.any(axis=1)
            if not judged.any():
                continue
            unlike = (known & (first != second))[judged]
            shown.append((part.positions[judged], ~unlike.any(axis=1)))
            unlike_of.append((unlike, part.variables))
            known_of.append(known[judged])

        def explain(part: int, index: int) -> Explanation:
            unlike, variables = unlike_of[part]
            names = [window.catalog.variables[int(c)] for c in variables[unlike[index]]]
            what = f"{self._first.attr_name} differs from {self._second.attr_name}"
            return Explanation(
                message=f"{what} in {len(names)} of {int(known_of[part][index].sum())} variables",
                cause=Cause(
                    fact=what,
                    subjects=tuple(sorted(v.label for v in names)),
                    text=f"{what} in {describe_variables(names)}"
                    + _WHY.get(self._first.attr_name, ""),
                ),
            )

        return _examples(window, shown, explain)


class _Pairs:
    """Finds two variables of a growing catalog by name: in each model that has both.

    Where no model has both, they are those of two models, if nothing else goes by their names.
    """

    def __init__(self, first: str, second: str) -> None:
        self._names = first, second
        self._scanned = 0
        self._by_owner: dict[str, list[int]] = {}
        self.codes: list[tuple[int, int]] = []

    def update(self, catalog: Catalog) -> None:
        if self._scanned == len(catalog.variables):
            return
        for code in range(self._scanned, len(catalog.variables)):
            variable = catalog.variables[code]
            if variable.kind == "parameter" and variable.name in self._names:
                found = self._by_owner.setdefault(variable.owner, [NONE, NONE])
                found[self._names.index(variable.name)] = code
        self._scanned = len(catalog.variables)
        self.codes = [(a, b) for a, b in self._by_owner.values() if NONE not in (a, b)]
        if not self.codes and len(self._by_owner) == 2:
            first, second = (
                max(found[place] for found in self._by_owner.values()) for place in (0, 1)
            )
            if NONE not in (first, second):
                self.codes = [(first, second)]


class _TiedMonitor(Monitor):
    def __init__(self, first: VarNameParam, second: VarNameParam) -> None:
        self._first = first
        self._second = second
        self._pairs = _Pairs(first.var_name, second.var_name)

    def observe(self, window: Window) -> Examples:
        self._pairs.update(window.catalog)
        if not self._pairs.codes:
            return NO_EXAMPLES
        attribute = self._first.attr_name
        about = VarTypeParam(var_type=self._first.var_type, attr_name=attribute)
        names = self._first.var_name, self._second.var_name
        shown = []
        for part in moments(window, about):
            column = part.column(attribute)
            equal = []
            for pair_ in self._pairs.codes:
                rows = [np.flatnonzero(part.variables == code) for code in pair_]
                if all(len(r) for r in rows):
                    equal.append(column[:, rows[0][0]] == column[:, rows[1][0]])
            if equal:
                shown.append((part.positions, np.all(equal, axis=0)))

        def explain(part: int, index: int) -> Explanation:
            text = f"`{names[0]}` and `{names[1]}` were tied and are separate tensors now"
            return Explanation(
                message=f"`{names[0]}` and `{names[1]}` differ in {attribute}",
                cause=Cause(fact="weights are not tied", subjects=names, text=text),
            )

        return _examples(window, shown, explain)


class _Proposer(Proposer):
    """Proposes variables that were equal in all frames and took more than one value.

    Keeps a partition of the parameters by all hashes seen so far and refines it as it goes.
    """

    def __init__(self) -> None:
        self._within: dict[tuple[Param, ...], None] = {}
        # One partition per catalog: codes of different runs mean different variables.
        self._catalog: Catalog | None = None
        self._label: Int64 = np.empty(0, np.int64)
        self._first = np.empty(0, np.uint64)
        self._moved = np.empty(0, np.bool_)
        self._found: set[tuple[str, str]] | None = None

    def observe(self, window: Window) -> None:
        if window.catalog is not self._catalog:
            self._close()
            self._catalog = window.catalog
            self._label = np.empty(0, np.int64)
        about = VarTypeParam(var_type=PARAMETER, attr_name="data")
        self._within |= {pair: None for pair in (WITHIN, TOLD) if moments(window, pair[0])}
        for shown in moments(window, about):
            self._refine(shown.variables, shown.column("data"))

    def _refine(self, codes: Int32, hashes: Array) -> None:
        """Take in the *hashes* of some variables, a row for each moment."""
        missing = int(codes.max()) + 1 - len(self._label)
        if missing > 0:
            self._label = np.append(self._label, np.full(missing, NONE))
            size = len(self._label)
            self._first = np.resize(self._first, size)
            self._moved = np.append(self._moved[: size - missing], np.zeros(missing, np.bool_))
        new = self._label[codes] == NONE
        self._first[codes[new]] = hashes[0, new]
        self._moved[codes] |= (hashes != self._first[codes]).any(axis=0)
        keys = np.concatenate([self._label[codes].astype(np.uint64)[None], hashes])
        _, labels = np.unique(keys, axis=1, return_inverse=True)
        # Labels of variables that this frame does not show stay apart from the new ones.
        offset = int(self._label.max(initial=0)) + 1
        self._label[codes] = labels.reshape(-1) + offset

    def _close(self) -> None:
        """Take over what the partition of the catalog that ends now tells."""
        if self._catalog is None:
            return
        groups: dict[int, list[int]] = {}
        for code in np.flatnonzero((self._label != NONE) & self._moved[: len(self._label)]):
            groups.setdefault(int(self._label[code]), []).append(int(code))
        variables = self._catalog.variables
        owners: dict[str, set[str]] = {}
        for variable in variables:
            if variable.kind == "parameter":
                owners.setdefault(variable.name, set()).add(variable.owner)
        found: set[tuple[str, str]] = set()
        for members in groups.values():
            by_owner: dict[str, list[str]] = {}
            for member in members:
                variable = variables[member]
                by_owner.setdefault(variable.owner, []).append(variable.name)
            for names in by_owner.values():
                found |= {(names[0], other) for other in names[1:]}
            # Between models only what cannot be taken for something else.
            unique = [names[0] for names in by_owner.values() if len(owners[names[0]]) == 1]
            found |= {(unique[0], other) for other in unique[1:]}
        self._found = found if self._found is None else self._found & found
        self._catalog = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        self._close()
        relation = ConsistencyRelation.name
        result = [Hypothesis(relation=relation, params=params) for params in self._within]
        for first, second in sorted(self._found or ()):
            result.append(
                Hypothesis(
                    relation=relation,
                    params=(
                        VarNameParam(var_name=first, var_type=PARAMETER, attr_name="data"),
                        VarNameParam(var_name=second, var_type=PARAMETER, attr_name="data"),
                    ),
                )
            )
        return result
