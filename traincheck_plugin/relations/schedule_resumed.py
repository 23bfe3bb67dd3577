"""ScheduleResumedRelation: a schedule goes on where the state of its optimizer had stopped."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    APIParam,
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
    Proposer,
    Relation,
)
from traincheck_plugin.relations.lifecycle import completed, is_placed, label, named_optimizer
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD, told_of
from traincheck_plugin.relations.moments import pairs
from traincheck_plugin.relations.naming import place, short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.role_proposer import RoleProposer

LOAD = APIParam(api_full_name=OPTIMIZER_LOAD, role="checkpoint")

_OPTIONS = VarTypeParam(var_type=VAR_TYPES["group"], attr_name="value")


class ScheduleResumedRelation(Relation):
    """A schedule goes on where the state that is loaded into its optimizer had stopped.

    ``forall calls b of a scheduler s of an optimizer o: not begun anew(s)``, where s was made for o
    before a state was loaded into o that gave it another learning rate: it was saved in the middle
    of a schedule. Begun anew is what makes its first move since then, after o stepped. No example
    is a schedule that was on its way when the state was loaded, that is moved on to its place
    before the first step, or told with each move where it is.

    Catches a checkpoint in which the state of the scheduler is missing, or from which it is not
    loaded: the learning rate is the one that was saved, and decays later than it should. Cannot see
    a scheduler that is made after the load, which may be meant to begin anew.
    """

    name = "ScheduleResumedRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        moved, _ = pair(self.name, params, APIParam, APIParam)
        return _Monitor(moved.api_full_name)

    def describe(self, params: tuple[Param, ...]) -> str:
        moved, loaded = pair(self.name, params, APIParam, APIParam)
        return (
            f"{short(moved.api_full_name)} goes on from where the schedule was when the state that "
            f"{short(loaded.api_full_name)} is given was saved"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        pair(self.name, params, APIParam, APIParam)
        wanted = frozenset({("group", "value")})
        return Plan(functions=frozenset(), attributes={"checkpoint": wanted})  # type: ignore[dict-item]

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"

    def regime(self, params: tuple[Param, ...]) -> tuple[str, ...]:
        # Whenever it is: schedules move in the training, and after an evaluation.
        return ()


class _Resumed:
    """An optimizer into which a state was loaded.

    Attributes:
        load: the call, with its place in the source.
        schedulers: those of it that had not moved by then.
        has_stepped: whether it has since.
        anew: the schedulers that began anew.
    """

    def __init__(self, load: str, schedulers: Iterable[str]) -> None:
        self.load = load
        self.schedulers = set(schedulers)
        self.has_stepped = False
        self.anew: set[str] = set()


class _Monitor(Monitor):
    def __init__(self, moved: str) -> None:
        self._moved = moved
        # By optimizer: the schedulers that were made for it and have not moved.
        self._waiting: dict[str, set[str]] = {}
        self._resumed: dict[str, _Resumed] = {}

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            # Nobody saw what moved.
            self._waiting.clear()
            self._resumed.clear()
            return NO_EXAMPLES
        loads = _loads(window)
        moves = completed(window, window.rows_of_name(self._moved)).tolist()
        is_move = set(moves)
        made = completed(window, window.rows_of_role("construct")).tolist()
        steps: list[int] = []
        if self._resumed or loads:
            steps = completed(window, window.rows_of_role("step")).tolist()
        found: list[tuple[int, _Resumed, bool]] = []
        for row in sorted([*made, *loads, *steps, *moves]):
            if row in is_move:
                found += self._move(window, row)
            elif row in loads:
                optimizer = label(window, row)
                text = f"{short(OPTIMIZER_LOAD)}{place(window, row)}"
                self._resumed[optimizer] = _Resumed(text, self._waiting.get(optimizer, ()))
            elif window.catalog.apis[int(window.calls.api[row])].role == "step":
                resumed = self._resumed.get(label(window, row))
                if resumed is not None:
                    resumed.has_stepped = True
            else:
                optimizer = named_optimizer(window, row)
                if optimizer:
                    self._waiting.setdefault(optimizer, set()).add(label(window, row))
        if not found:
            return NO_EXAMPLES
        rows, resumed_from, holds = zip(*found, strict=True)
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda index: _explain(window, rows[index], resumed_from[index].load),
        )

    def _move(self, window: Window, row: int) -> list[tuple[int, _Resumed, bool]]:
        """Take note of a move; return the example that it is, if it is one."""
        optimizer, scheduler = named_optimizer(window, row), label(window, row)
        self._waiting.get(optimizer, set()).discard(scheduler)
        resumed = self._resumed.get(optimizer)
        if resumed is None or scheduler not in resumed.schedulers:
            return []
        is_first = bool(told_of(window, row, "first"))
        if is_placed(window, row) or (is_first and not resumed.has_stepped):
            # It is put to where it was, or moved on to there.
            resumed.schedulers.discard(scheduler)
            return []
        if is_first:
            resumed.anew.add(scheduler)
        return [(row, resumed, scheduler not in resumed.anew)]


def _loads(window: Window) -> set[int]:
    """Return the loads into optimizers that change a learning rate."""
    rows = completed(window, window.rows_of_name(OPTIMIZER_LOAD))
    found = set()
    for both in pairs(window, rows, _OPTIONS):
        codes = both.begin.variables
        before, after = both.begin.column("value"), both.end.column("value")
        if both.common is not None:
            first, second = both.common
            codes, before, after = codes[first], before[:, first], after[:, second]
        variables = [window.catalog.variables[code] for code in codes.tolist()]
        for row, changed in zip(both.begin.calls.tolist(), before != after, strict=True):
            owner = label(window, row)
            told = [variables[place] for place in np.flatnonzero(changed).tolist()]
            if any(one.owner == owner and one.name.endswith(".lr") for one in told):
                found.add(row)
    return found


def _explain(window: Window, row: int, load: str) -> Explanation:
    name = short(window.catalog.apis[int(window.calls.api[row])].name)
    return Explanation(
        message=(
            f"{name} began its schedule anew, and {load} put the learning rate to where another "
            "had taken it"
        ),
        cause=Cause(
            fact="a schedule begins anew",
            subjects=(name,),
            text="the state of the scheduler was not loaded with that of its optimizer: the "
            "learning rate goes on from the one that was saved, by a schedule that is at its begin",
        ),
    )


class _Proposer(RoleProposer):
    """Proposes the rule for each kind of scheduler, where a load changed a learning rate."""

    def __init__(self) -> None:
        super().__init__(ScheduleResumedRelation.name, frozenset({"scheduler"}), LOAD)
        self._has_load = False

    def observe(self, window: Window) -> None:
        super().observe(window)
        self._has_load = self._has_load or bool(_loads(window))

    def hypotheses(self) -> Iterable[Hypothesis]:
        return super().hypotheses() if self._has_load else ()
