"""VarPeriodicChangeRelation: which variables change with every training step, and which never."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NOT_RUN, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    ConstantParam,
    Hypothesis,
    Param,
    Severity,
    VarTypeParam,
)
from traincheck_plugin.plan import FULL_ATTRIBUTES, Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.causes import find_cause
from traincheck_plugin.relations.derived import has, owners_taking_part
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import completed, last_of_each
from traincheck_plugin.relations.moments import Pair, by_stack, changes, fold, pairs
from traincheck_plugin.relations.named import Named
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.stacks import frames_of
from traincheck_plugin.vocabulary import NONE, PASSING, Bool, Int32, Int64, Role, Variable

PARAMETER, BUFFER = VAR_TYPES["parameter"], VAR_TYPES["buffer"]

UPDATED = VarTypeParam(
    var_type=PARAMETER, attr_name="data", post_value="changed", quantifier="every"
)
TRACKING = VarTypeParam(var_type=BUFFER, attr_name="data", post_value="changed", quantifier="every")
FIXED = VarTypeParam(var_type=BUFFER, attr_name="data", post_value="unchanged", quantifier="every")

ROLES: dict[str, Role] = {PARAMETER: "step", BUFFER: "forward"}
"""In which calls variables of a type are expected to change."""


class VarPeriodicChangeRelation(Relation):
    """The named variables change in every training window, or in none.

    ``forall windows w with a step, v in names: x(v) changes (or does not) in w``, in the steps for
    parameters and in the forward passes for buffers. A parameter that a step cannot move is not
    judged, nor are the parameters of a module that did not run, as an expert to which no sample is
    routed, nor are variables that the run does not have, and those of a model of which no optimizer
    holds a parameter and none has a gradient, as an average that is only looked at.

    Catches a part of a model that learned in the reference and is frozen, detached or left out
    now, and normalisation layers that an `eval()` stopped. Cannot see a change that is wrong.
    """

    name = "VarPeriodicChangeRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        variables, names = pair(self.name, params, VarTypeParam, ConstantParam)
        if variables not in (UPDATED, TRACKING, FIXED):
            raise InvariantError(
                f"{self.name} speaks of the data of parameters or buffers that is changed or "
                f"unchanged, got {variables.attr_name} of {variables.var_type}"
            )
        if not isinstance(names.value, tuple) or not all(isinstance(n, str) for n in names.value):
            raise InvariantError(f"{self.name} needs a list of names, got {names.value!r}")
        return _Monitor(variables, names.value)

    def describe(self, params: tuple[Param, ...]) -> str:
        variables, names = pair(self.name, params, VarTypeParam, ConstantParam)
        noun = "parameters" if variables.var_type == PARAMETER else "buffers"
        verb = "change" if variables.post_value == "changed" else "do not change"
        shown = ", ".join(f"`{name}`" for name in names.value[:3])
        more = ", ..." if len(names.value) > 3 else ""
        if len(names.value) == 1:
            noun, verb = noun[:-1], verb.replace("do not change", "does not change")
            verb = "changes" if verb == "change" else verb
        return f"{len(names.value)} {noun} ({shown}{more}) {verb} in every training step"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        variables, _ = pair(self.name, params, VarTypeParam, ConstantParam)
        if variables.var_type == PARAMETER:
            unused = {("parameter", "copy"), ("parameter", "module_requires_grad")}
            wanted = FULL_ATTRIBUTES["step"] - unused
            return Plan(functions=frozenset(), attributes={"step": wanted})
        roles: tuple[Role, ...] = ("forward", "backward") if variables == FIXED else ("forward",)
        attributes = {
            role: frozenset(p for p in FULL_ATTRIBUTES[role] if p[0] not in PASSING)
            for role in roles
        }
        return Plan(functions=frozenset(), attributes=attributes)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


UNKNOWN, IDLE, UNCHANGED, CHANGED = range(4)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What windows with a step tell about the variables of one type.

    Attributes:
        positions: of the windows among those of the stretch.
        rows: of each the last step.
        codes: the variables that are shown.
        state: a row for each window: which of them changed in some call; `UNKNOWN` where nothing
            showed it, or it could not be expected to change, `IDLE` where its module did not run.
        pairs: the calls looked at.
    """

    positions: Int64
    rows: Int64
    codes: Int64
    state: npt.NDArray[np.int8]
    pairs: list[Pair]


def _look(window: Window, var_type: str) -> _Seen:
    """Return what the steps of *window* tell, and those of each window in it."""
    key = _look, var_type
    seen: _Seen | None = window.cache.get(key)
    if seen is None:
        seen = window.cache[key] = _looked(window, var_type)
    return seen


def _looked(window: Window, var_type: str) -> _Seen:
    steps = last_of_each(window, completed(window, window.rows_of_role("step")))
    positions = window.position_of(steps)
    rows = window.rows_of_role(ROLES[var_type])
    rows = rows[np.isin(window.position_of(rows), positions)]
    allowed = window.catalog.contexts.column("grad_enabled")
    rows = rows[allowed[window.calls.context[rows]] == 1]
    about = VarTypeParam(var_type=var_type, attr_name="data")
    found = list(pairs(window, rows, about))
    shown = [one.begin.variables for one in found]
    codes = np.unique(np.concatenate([np.empty(0, np.int64), *shown]))
    state = np.zeros((len(steps), len(codes)), np.int8)
    for one in found:
        variables, changed = _states(window, one)
        where = np.searchsorted(positions, window.position_of(one.begin.calls))
        fold(np.maximum, state, where, np.searchsorted(codes, variables), changed)
    return _Seen(positions, steps, codes, state, found)


def _take_part(window: Window, seen: _Seen) -> Bool:
    """Return which variables belong to what takes part in the training, as far as steps tell."""
    owners = window.catalog.owners.of(seen.codes.astype(np.int32))
    found = np.ones(seen.state.shape, np.bool_)
    shown = frames_at(window, seen.rows, PARAMETER, ("optimizer", "grad"), is_begin=True)
    for indexes, moments in by_stack(window, shown):
        found[indexes] = owners_taking_part(window, moments)[:, owners]
    return found


def _states(window: Window, both: Pair) -> tuple[Int32, npt.NDArray[np.int8]]:
    """Return what calls did to which variables, between their frames."""
    begin = both.begin
    variables, changed = changes(both)
    state = np.where(changed, CHANGED, UNCHANGED).astype(np.int8)
    if begin.has("optimizer"):
        # Of a step: what it holds and could move, and what nothing will ever move.
        held = begin.select((("held", True),))
        is_shown = begin.column("optimizer") == NONE
        if held is not None:
            is_shown = is_shown | (held & ~begin.inert(normalised=False))
        if has(window, begin, "takes_part"):
            is_shown = is_shown & begin.column("takes_part")
        first = slice(None) if both.common is None else both.common[0]
        if begin.has("ran"):
            state[(begin.column("ran")[:, first] == NOT_RUN) & ~changed] = IDLE
        state[~is_shown[:, first]] = UNKNOWN
    return variables, state


class _FrozenModules:
    """Finds the buffers of modules that lie in a frozen part of a model.

    The part is the module around, unless that is the whole model: frozen are those parameters in
    it that belong to modules without buffers, since what they do changes the data that buffers
    follow. Where there are none, the module's own parameters tell.
    """

    def __init__(self) -> None:
        self._scanned = 0
        self._numbers: dict[tuple[str, str], int] = {}
        # By code of the variable: its module, and the module around that or again its own.
        self._module: list[int] = []
        self._around: list[int] = []
        self._with_buffers: set[int] = set()
        # Of each parameter and each module that it is in, at whatever depth.
        self._pairs: list[tuple[int, int]] = []

    def among(self, window: Window, seen: _Seen) -> Bool:
        """Return which of the buffers are such in each window; none where no frame can tell."""
        found = np.zeros(seen.state.shape, np.bool_)
        known: dict[bytes, Bool] = {}
        for indexes, shown in by_stack(window, _last_shown(window, seen.positions)):
            requires = shown.column("requires_grad")
            is_other = np.ones(len(requires), np.bool_)
            is_other[1:] = (requires[1:] != requires[:-1]).any(axis=1)
            starts = np.flatnonzero(is_other)
            for start, several in zip(starts, np.split(indexes, starts[1:]), strict=True):
                trainable = shown.variables[requires[start]]
                key = trainable.tobytes()
                if key not in known:
                    known[key] = self._are_among(window.catalog, trainable, seen.codes)
                found[several] = known[key]
        return found

    def _are_among(self, catalog: Catalog, trainable: Int32, codes: Int64) -> Bool:
        """Return which of *codes* are such buffers where these parameters require gradients."""
        self._update(catalog)
        module, around = np.array(self._module), np.array(self._around)
        parameter, part = np.array(self._pairs, np.int64).reshape(-1, 2).T
        is_trainable = np.zeros(self._scanned, np.bool_)
        is_trainable[trainable] = True
        learns = is_trainable[parameter]
        is_own = part == module[parameter]
        is_plain = ~np.isin(module[parameter], list(self._with_buffers))
        own, learns_itself = self._marks(part[is_own]), self._marks(part[is_own & learns])
        plain, learns_around = self._marks(part[is_plain]), self._marks(part[is_plain & learns])
        here, there = module[codes], around[codes]
        is_told_around = plain[there] & (here != there)
        own_is_frozen = own[here] & ~learns_itself[here]
        chosen: Bool = np.where(is_told_around, ~learns_around[there], own_is_frozen)
        return chosen

    def _marks(self, numbers: Int64) -> npt.NDArray[np.bool_]:
        marks = np.zeros(len(self._numbers), np.bool_)
        marks[numbers] = True
        return marks

    def _update(self, catalog: Catalog) -> None:
        for code in range(self._scanned, len(catalog.variables)):
            variable = catalog.variables[code]
            path = variable.name.rpartition(".")[0]
            number = self._number(variable.owner, path)
            self._module.append(number)
            self._around.append(self._number(variable.owner, path.rpartition(".")[0] or path))
            if variable.kind == "buffer":
                self._with_buffers.add(number)
            elif variable.kind == "parameter":
                self._pairs.append((code, number))
                while path:
                    path = path.rpartition(".")[0]
                    self._pairs.append((code, self._number(variable.owner, path)))
        self._scanned = len(catalog.variables)

    def _number(self, owner: str, path: str) -> int:
        return self._numbers.setdefault((owner, path), len(self._numbers))


def _last_shown(window: Window, positions: Int64) -> Int64:
    """Return of each of the windows the last frame that shows what requires gradients."""
    if window.joint is None:
        frames = enumerate(window.frames)
        shown = [number for number, frame in frames if "requires_grad" in frame.columns]
        return np.full(len(positions), shown[-1] if shown else NONE)
    stacked = frames_of(window)
    shows = np.array(["requires_grad" in stack.columns for stack in stacked.stacks], np.bool_)
    those = np.flatnonzero(shows[stacked.stack])
    last = np.full(window.num_parts, NONE, np.int64)
    last[np.searchsorted(window.joint.frames, those, side="right") - 1] = those
    return last[positions]


class _Monitor(Monitor):
    def __init__(self, variables: VarTypeParam, names: tuple[str, ...]) -> None:
        self._variables = variables
        self._named = Named(variables.var_type, names, lambda v: v.name)
        self._frozen = PerRun(_FrozenModules)
        self._wanted = CHANGED if variables.post_value == "changed" else UNCHANGED

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            return NO_EXAMPLES
        seen = _look(window, self._variables.var_type)
        judged = (seen.state > IDLE) & self._named.among(window.catalog)[seen.codes]
        if self._variables == FIXED:
            judged &= self._frozen.of(window.catalog).among(window, seen)
        elif self._variables == TRACKING:
            judged &= _take_part(window, seen)
        chosen = judged.any(axis=1)
        if not chosen.any():
            return NO_EXAMPLES
        rows, judged = seen.rows[chosen], judged[chosen]
        failing = judged & (seen.state[chosen] != self._wanted)

        def explain(index: int) -> Explanation:
            part, _ = window.at(int(rows[index]))
            return self._explain(part, seen.codes[judged[index]], seen.codes[failing[index]])

        return Examples.of_calls(window, rows, ~failing.any(axis=1), explain)

    def _explain(self, window: Window, judged: Int64, failing: Int64) -> Explanation:
        names = [window.catalog.variables[int(code)] for code in failing]
        number, total = len(failing), len(judged)
        labels = tuple(sorted(v.label for v in names))
        if self._variables == UPDATED:
            begin = next(
                pair.begin
                for pair in reversed(_look(window, PARAMETER).pairs)
                if np.isin(failing, pair.begin.variables).any()
            )
            row, frame = int(begin.calls[0]), window.frames[int(begin.positions[0])]
            name = short(window.catalog.apis[int(window.calls.api[row])].name)
            mask = np.isin(frame.variables, failing)
            others = np.isin(frame.variables, judged) & ~mask
            cause = find_cause(window, row, frame, mask, others)
            # Where nothing tells why, it is at least told of what.
            what = "" if cause is not None else f": {describe_variables(names)}"
            return Explanation(
                message=f"{number} of {total} parameters that learn in a healthy run were not "
                f"updated by {name}{what}",
                cause=cause,
            )
        if self._variables == TRACKING:
            return Explanation(
                message=f"{number} of {total} buffers that follow the data in a healthy run did "
                "not change",
                cause=Cause(
                    fact="in eval mode",
                    subjects=labels,
                    text=f"{_buffers(names)} did not follow the data: their modules are in eval "
                    "mode, ran without gradients, or were not run",
                ),
            )
        return Explanation(
            message=f"{number} of {total} buffers in frozen parts of the model changed",
            cause=Cause(
                fact="frozen modules follow the data",
                subjects=labels,
                text=f"{_buffers(names)} belong to a frozen part of the model that is in training "
                "mode: they follow the data",
            ),
        )


def _buffers(names: Sequence[Variable]) -> str:
    return describe_variables(names).replace("parameters", "buffers")


def _paused(seen: _Seen, ran: Bool, idle: set[int]) -> Bool:
    """Return which variables ran again after they had not; note in *idle* which did not."""
    is_idle = seen.state == IDLE
    before = np.array([code in idle for code in seen.codes.tolist()], np.bool_)
    idle_by_then = np.logical_or.accumulate(np.vstack([before, is_idle]), axis=0)[:-1]
    idle.update(seen.codes[is_idle.any(axis=0)].tolist())
    paused: Bool = np.logical_or.reduce(idle_by_then & ran, axis=0)
    return paused


class _Proposer(Proposer):
    """Proposes the variables that changed in every window that could show it, or in none.

    Of what runs now and then nobody knows how often it should. What does not run any more belongs
    to a model of an earlier phase.
    """

    def __init__(self) -> None:
        self._frozen = PerRun(_FrozenModules)
        # By code: parameters that did not run at some time.
        self._idle: PerRun[set[int]] = PerRun(set)
        self._found: dict[VarTypeParam, dict[str, bool]] = {
            param: {} for param in (UPDATED, TRACKING, FIXED)
        }

    def observe(self, window: Window) -> None:
        if not window.observed:
            return
        idle = self._idle.of(window.catalog)
        for param, found in self._found.items():
            seen = _look(window, param.var_type)
            is_known = seen.state != UNKNOWN
            if param == FIXED:
                is_known &= self._frozen.of(window.catalog).among(window, seen)
            elif param == TRACKING:
                is_known &= _take_part(window, seen)
            wanted = CHANGED if param.post_value == "changed" else UNCHANGED
            ran = is_known & (seen.state != IDLE)
            fails = (ran & (seen.state != wanted)).any(axis=0) | _paused(seen, ran, idle)
            variables = window.catalog.variables
            for column in np.flatnonzero(ran.any(axis=0)).tolist():
                name = variables[int(seen.codes[column])].name
                found[name] = found.get(name, True) and not fails[column]

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(
                relation=VarPeriodicChangeRelation.name,
                params=(param, ConstantParam(value=tuple(names))),
            )
            for param, found in self._found.items()
            if (names := sorted(name for name, holds in found.items() if holds))
        ]
