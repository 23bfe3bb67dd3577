"""VarPeriodicChangeRelation: which variables change with every training step, and which never."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import (
    NONE,
    NOT_RUN,
    Catalog,
    Frame,
    Int64,
    Role,
    Variable,
    Window,
)
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
from traincheck_plugin.relations.changes import inert
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import pair
from traincheck_plugin.relations.values import align, is_about

PARAMETER, BUFFER = VAR_TYPES["parameter"], VAR_TYPES["buffer"]

UPDATED = VarTypeParam(
    var_type=PARAMETER, attr_name="data", post_value="changed", quantifier="every"
)
TRACKING = VarTypeParam(var_type=BUFFER, attr_name="data", post_value="changed", quantifier="every")
FIXED = VarTypeParam(var_type=BUFFER, attr_name="data", post_value="unchanged", quantifier="every")

ROLES = {PARAMETER: "step", BUFFER: "forward"}
"""In which calls variables of a type are expected to change."""


class VarPeriodicChangeRelation(Relation):
    """The named variables change in every training window, or in none.

    ``forall windows w with a step, v in names: x(v) changes (or does not) in w``, in the steps for
    parameters and in the forward passes for buffers. A parameter that a step cannot move is not
    judged, nor are the parameters of a module that did not run, as an expert to which no sample is
    routed, nor are variables that the run does not have.

    Catches a part of a model that learned in the reference and is frozen, detached or left out
    now, and normalisation layers that an `eval()` stopped. Cannot see a change that is wrong.
    """

    name = "VarPeriodicChangeRelation"

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
            wanted = FULL_ATTRIBUTES["step"] - {("parameter", "copy")}
            return Plan(functions=frozenset(), attributes={"step": wanted})
        roles: tuple[Role, ...] = ("forward", "backward") if variables == FIXED else ("forward",)
        return Plan(
            functions=frozenset(), attributes={role: FULL_ATTRIBUTES[role] for role in roles}
        )

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


UNKNOWN, UNCHANGED, CHANGED = 0, 1, 2


@dataclass(slots=True)
class _Seen:
    """What one window tells about the variables of one type.

    Attributes:
        row: of the last step of the window.
        state: by code of the variable, whether it changed in some call; `UNKNOWN` where nothing
            showed it, or it could not be expected to change.
        frames: the calls looked at, and the frames at their begin.
    """

    row: int
    state: npt.NDArray[np.int8]
    frames: list[tuple[int, Frame]] = field(default_factory=list)


def _look(window: Window, var_type: str) -> _Seen | None:
    """Return what a training window tells; None where it has no step that was observed."""
    calls, apis = window.calls, window.catalog.apis
    steps = [
        int(row)
        for code in window.api_codes
        if apis[code].role == "step"
        for row in window.rows_of_api(code)
        if calls.exception[row] == NONE
    ]
    if not steps or not window.observed:
        return None
    seen = _Seen(row=max(steps), state=np.zeros(len(window.catalog.variables), np.int8))
    about = VarTypeParam(var_type=var_type, attr_name="data")
    for call, frames in window.frames_of_call.items():
        row = window.row_of_call.get(call)
        if row is None or apis[int(calls.api[row])].role != ROLES[var_type]:
            continue
        if not window.catalog.contexts[int(calls.context[row])].grad_enabled:
            continue
        both = {f.phase: f for f in frames if is_about(window, f, about)}
        if len(both) == 2:
            _compare(window, row, both["begin"], both["end"], seen)
    return seen


def _compare(window: Window, row: int, begin: Frame, end: Frame, seen: _Seen) -> None:
    """Add what one call did, between its frames."""
    common = align(begin, end)
    first, second = (slice(None), slice(None)) if common is None else common
    changed = begin.columns["data"][first] != end.columns["data"][second]
    is_shown = np.ones(len(begin), np.bool_)
    if "optimizer" in begin.columns:
        # Of a step: what it holds and could move, and what nothing will ever move.
        owners = begin.columns["optimizer"]
        held = owners == window.calls.object[row]
        is_shown = (held & ~inert(window, begin, normalised=False)) | (owners == NONE)
    codes = begin.variables[first]
    state = np.where(changed, CHANGED, UNCHANGED).astype(np.int8)
    shown = is_shown[first]
    if "ran" in begin.columns:
        shown &= changed | (begin.columns["ran"] != NOT_RUN)[first]
    np.maximum.at(seen.state, codes[shown], state[shown])
    seen.frames.append((row, begin))


class _FrozenModules:
    """Finds the buffers of modules that lie in a frozen part of a model.

    The part is the module around, unless that is the whole model: frozen are those parameters in
    it that belong to modules without buffers, since what they do changes the data that buffers
    follow. Where there are none, the module's own parameters tell.
    """

    def __init__(self) -> None:
        self._catalog: Catalog | None = None
        self._start()

    def _start(self) -> None:
        self._scanned = 0
        self._numbers: dict[tuple[str, str], int] = {}
        # By code of the variable: its module, and the module around that or again its own.
        self._module: list[int] = []
        self._around: list[int] = []
        self._with_buffers: set[int] = set()
        # Of each parameter and each module that it is in, at whatever depth.
        self._pairs: list[tuple[int, int]] = []

    def among(self, window: Window, codes: Int64) -> Int64:
        """Return those of *codes* that are such buffers now; none where no frame can tell."""
        frame = next((f for f in reversed(window.frames) if "requires_grad" in f.columns), None)
        if frame is None or not len(codes):
            return codes[:0]
        self._update(window.catalog)
        module, around = np.array(self._module), np.array(self._around)
        parameter, part = np.array(self._pairs, np.int64).reshape(-1, 2).T
        is_trainable = np.zeros(self._scanned, np.bool_)
        is_trainable[frame.variables[frame.columns["requires_grad"]]] = True
        learns = is_trainable[parameter]
        is_own = part == module[parameter]
        is_plain = ~np.isin(module[parameter], list(self._with_buffers))
        own, learns_itself = self._marks(part[is_own]), self._marks(part[is_own & learns])
        plain, learns_around = self._marks(part[is_plain]), self._marks(part[is_plain & learns])
        here, there = module[codes], around[codes]
        is_told_around = plain[there] & (here != there)
        chosen: Int64 = codes[
            np.where(is_told_around, ~learns_around[there], own[here] & ~learns_itself[here])
        ]
        return chosen

    def _marks(self, numbers: Int64) -> npt.NDArray[np.bool_]:
        marks = np.zeros(len(self._numbers), np.bool_)
        marks[numbers] = True
        return marks

    def _update(self, catalog: Catalog) -> None:
        if catalog is not self._catalog:
            self._start()
            self._catalog = catalog
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


class _Names:
    """The codes of named variables in a catalog that grows."""

    def __init__(self, var_type: str, names: tuple[str, ...]) -> None:
        self._kind = next(kind for kind, name in VAR_TYPES.items() if name == var_type)
        self._names = frozenset(names)
        self._scanned = 0
        self.codes: list[int] = []

    def update(self, catalog: Catalog) -> None:
        for code in range(self._scanned, len(catalog.variables)):
            variable = catalog.variables[code]
            if variable.kind == self._kind and variable.name in self._names:
                self.codes.append(code)
        self._scanned = len(catalog.variables)


class _Monitor(Monitor):
    def __init__(self, variables: VarTypeParam, names: tuple[str, ...]) -> None:
        self._variables = variables
        self._names = _Names(variables.var_type, names)
        self._frozen = _FrozenModules()
        self._wanted = CHANGED if variables.post_value == "changed" else UNCHANGED

    def observe(self, window: Window) -> Examples:
        seen = _look(window, self._variables.var_type)
        if seen is None:
            return NO_EXAMPLES
        self._names.update(window.catalog)
        judged = np.array(self._names.codes, np.int64)
        judged = judged[seen.state[judged] != UNKNOWN]
        if self._variables == FIXED:
            judged = self._frozen.among(window, judged)
        if not len(judged):
            return NO_EXAMPLES
        failing = judged[seen.state[judged] != self._wanted]

        def explain(index: int) -> Explanation:
            return self._explain(window, seen, judged, failing)

        return Examples.of_calls(
            window, np.array([seen.row], np.int64), np.array([not len(failing)]), explain
        )

    def _explain(self, window: Window, seen: _Seen, judged: Int64, failing: Int64) -> Explanation:
        names = [window.catalog.variables[int(code)] for code in failing]
        number, total = len(failing), len(judged)
        labels = tuple(sorted(v.label for v in names))
        if self._variables == UPDATED:
            row, frame = next(
                (r, f) for r, f in reversed(seen.frames) if np.isin(failing, f.variables).any()
            )
            name = short(window.catalog.apis[int(window.calls.api[row])].name)
            mask = np.isin(frame.variables, failing)
            others = np.isin(frame.variables, judged) & ~mask
            return Explanation(
                message=f"{number} of {total} parameters that learn in a healthy run were not "
                f"updated by {name}",
                cause=find_cause(window, row, frame, mask, others),
            )
        if self._variables == TRACKING:
            return Explanation(
                message=f"{number} of {total} buffers that follow the data in a healthy run did "
                "not change",
                cause=Cause(
                    fact="in eval mode",
                    subjects=labels,
                    text=f"{_buffers(names)} did not follow the data: their modules are in eval "
                    "mode, or were not run",
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


class _Proposer(Proposer):
    """Proposes the variables that changed in every window that could show it, or in none."""

    def __init__(self) -> None:
        self._frozen = _FrozenModules()
        self._found: dict[VarTypeParam, dict[str, bool]] = {
            param: {} for param in (UPDATED, TRACKING, FIXED)
        }

    def observe(self, window: Window) -> None:
        for param, found in self._found.items():
            seen = _look(window, param.var_type)
            if seen is None:
                continue
            codes = np.flatnonzero(seen.state)
            if param == FIXED:
                codes = self._frozen.among(window, codes)
            wanted = CHANGED if param.post_value == "changed" else UNCHANGED
            variables = window.catalog.variables
            for code in codes.tolist():
                name = variables[code].name
                found[name] = found.get(name, True) and bool(seen.state[code] == wanted)

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(
                relation=VarPeriodicChangeRelation.name,
                params=(param, ConstantParam(value=tuple(names))),
            )
            for param, found in self._found.items()
            if (names := sorted(name for name, holds in found.items() if holds))
        ]
