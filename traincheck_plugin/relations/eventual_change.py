"""EventualChangeRelation: what changes on the way in a healthy run changes here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NOT_RUN, Frame, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
    VarTypeParam,
)
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Place,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.causes import find_cause
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import completed, last_of_each
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.named import Named
from traincheck_plugin.relations.naming import describe_variables
from traincheck_plugin.relations.params import attribute_plan, three
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import NONE, Array, Bool, GradState, Int32, Int64, Variable

PARAMETER = VAR_TYPES["parameter"]

CHANGED = VarTypeParam(
    var_type=PARAMETER, attr_name="data", post_value="changed", quantifier="every"
)

LATITUDE = 2
"""How many times longer than in the reference it may take: in steps, and after the first epoch in
epochs."""

AT_ONCE = 2
"""The step that shows what changes with the first one."""


class EventualChangeRelation(Relation):
    """The named parameters are not always what they were at first.

    ``forall v in names: exists training step t <= n: x(v at begin(t)) != x(v at its first
    step)``. What took until a later epoch in the reference may take as many steps, and until
    the end of the run, if that comes in that epoch or later, and of the epoch with twice its
    number; what changed with the first step, one more; all else, `LATITUDE` times the steps.
    Named are those of which no optimizer has gradients when they are first seen. The parameters
    of a module that an optimizer holds and that never ran are not judged.

    Catches a backbone that is never unfrozen, a target network or an average that nothing updates,
    and a model that the weights trained in its place are never copied to. Cannot see that it is
    updated too rarely.
    """

    name = "EventualChangeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        names, number, epoch = _parts(params)
        return _Monitor(names, number, epoch)

    def describe(self, params: tuple[Param, ...]) -> str:
        names, number, _ = _parts(params)
        shown = ", ".join(f"`{name}`" for name in names[:3])
        more = ", ..." if len(names) > 3 else ""
        noun = "1 parameter" if len(names) == 1 else f"{len(names)} parameters"
        return f"{noun} ({shown}{more}) change within {number} training steps"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return attribute_plan(CHANGED, ("step",)).union(
            Plan(functions=frozenset(), attributes={"step": frozenset({("parameter", "ran")})})
        )

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _parts(params: tuple[Param, ...]) -> tuple[tuple[str, ...], int, int]:
    """Return the names, the number of steps and the epoch of a hypothesis.

    Raises:
        InvariantError: it is none of this relation.
    """
    rule, names, limit = three(
        EventualChangeRelation.name, params, VarTypeParam, ConstantParam, ConstantParam
    )
    if rule != CHANGED:
        raise InvariantError(
            f"{EventualChangeRelation.name} speaks of the data of parameters that is changed, got "
            f"{rule.attr_name} of {rule.var_type}"
        )
    if not isinstance(names.value, tuple) or not all(isinstance(n, str) for n in names.value):
        raise InvariantError(
            f"{EventualChangeRelation.name} needs a list of names, got {names.value!r}"
        )
    if (
        not isinstance(limit.value, tuple)
        or len(limit.value) != 2
        or not all(type(n) is int for n in limit.value)
    ):
        raise InvariantError(
            f"{EventualChangeRelation.name} needs a number of steps and an epoch, "
            f"got {limit.value!r}"
        )
    number, epoch = limit.value
    return names.value, number, epoch


def _name(variable: Variable) -> str:
    """Return the name under which a parameter is found again in another run."""
    # Several models may have parameters of one name; the module that defines their class may be
    # another one when a script is imported.
    return f"{variable.owner.rpartition('.')[2]}.{variable.name}"


@dataclass(frozen=True, slots=True)
class _Part:
    """Training steps: of each batch the last one.

    Attributes:
        rows: of the steps.
        positions: of the frames at their begin.
        epochs: in which they are.
        codes: the parameters that they show, one for each column of the arrays.
        is_shown: a row for each step: which of them it shows.
        is_held: which of those an optimizer holds.
        numbers: how many steps showed each so far.
        has_changed: whether it was another one by then.
        has_run: whether its module ran by then.
        is_learning: whether it was held with a gradient when it was first seen.
    """

    rows: Int64
    positions: Int64
    epochs: Int64
    codes: Int32
    is_shown: Bool
    is_held: Bool
    numbers: Int64
    has_changed: Bool
    has_run: Bool
    is_learning: Bool


class _History:
    """Follows all parameters of a run from the first step that shows them."""

    def __init__(self) -> None:
        # By code of the variable.
        self._first = np.zeros(0, np.uint64)
        self._number = np.zeros(0, np.int64)
        self._has_changed, self._has_run, self._is_learning, self._is_held = np.zeros(
            (4, 0), np.bool_
        )

    def observe(self, window: Window) -> _Part | None:
        """Return what the training steps of a window show; None where they show nothing."""
        if not window.observed:
            return None
        rows = last_of_each(window, completed(window, window.rows_of_role("step")))
        positions = frames_at(window, rows, PARAMETER, ("data", "optimizer", "grad"), is_begin=True)
        rows, positions = rows[positions != NONE], positions[positions != NONE]
        if not len(rows):
            return None
        self._grow(len(window.catalog.variables))
        codes, is_shown, data, is_held, learns, ran = _table(window, positions)
        self._meet(codes, is_shown, data, learns)
        changed = np.logical_or.accumulate(is_shown & (data != self._first[codes]), axis=0)
        part = _Part(
            rows=rows,
            positions=positions,
            epochs=window.catalog.contexts.column("epoch")[window.calls.context[rows]],
            codes=codes,
            is_shown=is_shown,
            is_held=is_held,
            numbers=self._number[codes] + np.cumsum(is_shown, axis=0),
            has_changed=changed | self._has_changed[codes],
            has_run=np.logical_or.accumulate(ran, axis=0) | self._has_run[codes],
            is_learning=self._is_learning[codes],
        )
        self._number[codes] = part.numbers[-1]
        self._has_changed[codes] = part.has_changed[-1]
        self._has_run[codes] = part.has_run[-1]
        last = len(rows) - 1 - np.argmax(is_shown[::-1], axis=0)
        self._is_held[codes] = is_held[last, np.arange(len(codes))]
        return part

    def _meet(self, codes: Int32, is_shown: Bool, data: Array, learns: Bool) -> None:
        new = np.flatnonzero(self._number[codes] == 0)
        if len(new):
            at = np.argmax(is_shown[:, new], axis=0), new
            self._first[codes[new]] = data[at]
            self._is_learning[codes[new]] = learns[at]

    def unchanged(self, number: int) -> Bool:
        """Return by code what more than *number* steps showed as it was at first."""
        judged: Bool = (self._number > number) & (self._has_run | ~self._is_held)
        return judged & ~self._has_changed

    def _grow(self, size: int) -> None:
        missing = max(0, size - len(self._first))
        if missing:
            for name in (
                "_first", "_number", "_has_changed", "_has_run", "_is_learning", "_is_held",
            ):  # fmt: skip
                column = getattr(self, name)
                setattr(self, name, np.append(column, np.zeros(missing, column.dtype)))


def _table(window: Window, positions: Int64) -> tuple[Int32, Bool, Array, Bool, Bool, Bool]:
    """Return what frames show, a row for each: the parameters, and for each of these arrays.

    Whether a frame shows a parameter, its data, whether an optimizer holds it, with a gradient, and
    whether its module ran.
    """
    parts = list(by_stack(window, positions))
    codes = parts[0][1].variables
    if len(parts) > 1:
        codes = np.unique(np.concatenate([shown.variables for _, shown in parts]))
    shape = len(positions), len(codes)
    is_shown, is_held, learns, ran = np.zeros((4, *shape), np.bool_)
    data = np.zeros(shape, np.uint64)
    for indexes, shown in parts:
        alone = len(parts) == 1
        columns = np.arange(len(codes)) if alone else np.searchsorted(codes, shown.variables)
        where = np.ix_(indexes, columns)
        is_shown[where] = True
        data[where] = shown.column("data")
        held = shown.column("optimizer") != NONE
        is_held[where] = held
        learns[where] = held & (shown.column("grad") > GradState.NULL)
        ran[where] = shown.column("ran") != NOT_RUN if shown.has("ran") else True
    return codes, is_shown, data, is_held, learns, ran


class _Monitor(Monitor):
    def __init__(self, names: tuple[str, ...], number: int, epoch: int) -> None:
        self._named = Named(PARAMETER, names, _name)
        self._number = number
        self._epoch = epoch
        self._history = PerRun(_History)
        self._catalog: Catalog | None = None
        self._last: Place | None = None

    def observe(self, window: Window) -> Examples:
        part = self._history.of(window.catalog).observe(window)
        if part is None:
            return NO_EXAMPLES
        self._catalog = window.catalog
        self._last = Place.of(window, int(part.rows[-1]))
        named = part.is_shown & self._named.among(window.catalog)[part.codes]
        late = part.numbers > self._number
        if self._epoch:
            late &= (part.epochs > self._epoch)[:, None]
        overdue = named & late & ~part.has_changed & (part.has_run | ~part.is_held)
        judged = np.flatnonzero((overdue | (named & part.has_changed)).any(axis=1))
        if not len(judged):
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            at = judged[index]
            frame = window.frames[int(part.positions[at])]
            failing = np.isin(frame.variables, part.codes[overdue[at]])
            others = np.isin(frame.variables, part.codes[named[at]]) & ~failing
            return self._explain(window, int(part.rows[at]), frame, failing, others)

        holds = np.logical_not(overdue[judged].any(axis=1))
        return Examples.of_calls(window, part.rows[judged], holds, explain)

    def finish(self) -> Examples:
        last, catalog = self._last, self._catalog
        if last is None or catalog is None:
            return NO_EXAMPLES
        epoch = catalog.contexts[last.context].epoch
        if not self._epoch or not self._epoch <= LATITUDE * epoch <= LATITUDE * self._epoch:
            return NO_EXAMPLES
        unchanged = self._history.of(catalog).unchanged(self._number)
        codes = np.flatnonzero(unchanged & self._named.among(catalog)[: len(unchanged)])
        if not len(codes):
            return NO_EXAMPLES
        names = [catalog.variables[int(code)] for code in codes]
        return Examples.of_failures([last], lambda _: self._told(names, None))

    def _explain(
        self, window: Window, row: int, frame: Frame, failing: Bool, others: Bool
    ) -> Explanation:
        names = [window.catalog.variables[int(code)] for code in frame.variables[failing]]
        # What an optimizer has gradients of and does not move has a cause in what the step met.
        is_used = (frame.columns["optimizer"] != NONE) & (frame.columns["grad"] > GradState.NULL)
        cause = None
        if is_used[failing].all():
            cause = find_cause(*window.at(row), frame, failing, others)
        return self._told(names, cause)

    def _told(self, names: list[Variable], cause: Cause | None) -> Explanation:
        number = f"{len(names)} parameter{'' if len(names) == 1 else 's'}"
        text = (
            f"{describe_variables(names)} never changed: no optimizer step reached them, nothing "
            "unfroze them, and nothing was copied or averaged into them"
        )
        return Explanation(
            message=f"{number} of which a healthy run changes the values kept them for more than "
            f"{self._number} training steps",
            cause=cause
            or Cause(
                fact="never changes",
                subjects=tuple(sorted(v.label for v in names)),
                text=text,
            ),
        )


class _Proposer(Proposer):
    """Proposes what changed, together with what took about as long."""

    def __init__(self) -> None:
        self._history = PerRun(_History)
        # Of each parameter that changed: in which step and epoch; None where it is no matter.
        self._taken: dict[str, tuple[int, int] | None] = {}

    def observe(self, window: Window) -> None:
        part = self._history.of(window.catalog).observe(window)
        if part is None:
            return
        for column in np.flatnonzero(part.has_changed[-1]).tolist():
            name = _name(window.catalog.variables[int(part.codes[column])])
            if name not in self._taken:
                index = int(np.argmax(part.has_changed[:, column]))
                number = int(part.numbers[index, column])
                is_learning = part.is_learning[column]
                self._taken[name] = None if is_learning else (number, int(part.epochs[index]))

    def hypotheses(self) -> Iterable[Hypothesis]:
        together: dict[tuple[int, int], list[str]] = {}
        for name, taken in self._taken.items():
            if taken is None:
                continue
            number, epoch = taken
            # What happens at about the same time is one rule.
            is_due = epoch > 0 or number <= AT_ONCE
            limit = number if is_due else LATITUDE * (1 << (number - 1).bit_length())
            together.setdefault((limit, LATITUDE * epoch), []).append(name)
        for both, names in sorted(together.items()):
            yield Hypothesis(
                relation=EventualChangeRelation.name,
                params=(
                    CHANGED,
                    ConstantParam(value=tuple(sorted(names))),
                    ConstantParam(value=both),
                ),
            )
