"""ContinuityRelation: a step finds the state that the step before left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import NONE, Array, Bool, Catalog, Frame, Int32, Int64, Window
from traincheck_plugin.invariants.model import VAR_TYPES, Hypothesis, Param, Severity, VarTypeParam
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
from traincheck_plugin.relations.loads import MODULE_LOAD, OPTIMIZER_LOAD, Load, loads_in
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import attribute_plan

PARAMETER, SLOT = VAR_TYPES["parameter"], VAR_TYPES["slot"]

HELD, FROZEN = (("held", True),), (("requires_grad", False), ("in_model", True))
SAME_OBJECT = ("same_object", True)
"""Says nothing of what a new model or optimizer begins with."""

_UNCHANGED = VarTypeParam(
    var_type=PARAMETER, attr_name="data", post_value="unchanged", quantifier="every", where=HELD
)
_ACROSS = (
    _UNCHANGED,
    replace(_UNCHANGED, quantifier="some"),
    replace(_UNCHANGED, where=FROZEN),
    replace(_UNCHANGED, var_type=SLOT),
)
RULES = (*_ACROSS, *(replace(rule, where=(*rule.where, SAME_OBJECT)) for rule in _ACROSS))


class ContinuityRelation(Relation):
    """A step finds *every* (or at least *some*) variable as the last step left it.

    ``forall steps s, t in a row: forall (or exists) v: x(v at begin(t)) = x(v at end(s))``, for the
    parameters that the optimizer of t holds, for those that are frozen, and for its state. Where
    a new model or optimizer takes the place of an earlier one of its class, as after a restart
    within the run, a variable goes on from the one of its name. What was loaded from elsewhere is
    not judged: a training may go back to an earlier checkpoint.

    Catches averaged weights that an evaluation swapped in and not out again, and a checkpoint of
    which nothing was loaded. Cannot see what happens within a step.
    """

    name = "ContinuityRelation"

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        rule = _the(params)
        return _SlotMonitor(rule) if rule.var_type == SLOT else _ParameterMonitor(rule)

    def describe(self, params: tuple[Param, ...]) -> str:
        rule = _the(params)
        which = (
            "frozen parameters stay as they are"
            if rule.where[: len(FROZEN)] == FROZEN
            else "the state of optimizers does not change"
            if rule.var_type == SLOT
            else "parameters do not change"
            if rule.quantifier == "every"
            else "not all parameters change"
        )
        across = "" if SAME_OBJECT in rule.where else ", nor do new objects begin with another"
        return f"{which} between two steps{across}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        plan = attribute_plan(VarTypeParam(var_type=PARAMETER, attr_name="data"), ("step",))
        if _the(params).var_type == SLOT:
            return plan.union(
                attribute_plan(VarTypeParam(var_type=SLOT, attr_name="data"), ("step",))
            )
        return plan

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"

    def implied_by(self, params: tuple[Param, ...]) -> Hypothesis | None:
        rule = _the(params)
        if SAME_OBJECT in rule.where:
            stronger = replace(rule, where=rule.where[:-1])
        elif rule.quantifier == "some":
            stronger = replace(rule, quantifier="every")
        else:
            return None
        return Hypothesis(relation=self.name, params=(stronger,))


def _the(params: tuple[Param, ...]) -> VarTypeParam:
    """Return the rule that a hypothesis states.

    Raises:
        InvariantError: it is none of `RULES`.
    """
    if len(params) == 1 and isinstance(params[0], VarTypeParam) and params[0] in RULES:
        return params[0]
    raise InvariantError(
        f"{ContinuityRelation.name} speaks of the data of parameters or of the state of optimizers "
        f"that is unchanged, got {params}"
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """A step, its frames of parameters and, where it has any, of slots."""

    row: int
    begin: Frame
    end: Frame | None
    slots_begin: Frame | None
    slots_end: Frame | None


def _events(window: Window, load_name: str) -> Iterator[_Step | Load]:
    """Yield the steps of a window and the loads before, between and after them, in order."""
    apis = window.catalog.apis
    loads = loads_in(window, load_name)
    steps = []
    for code in window.api_codes:
        if apis[code].role == "step":
            for row in window.rows_of_api(code).tolist():
                step = _step(window, row)
                if step is not None:
                    steps.append(step)
    for step in sorted(steps, key=lambda step: step.begin.sequence):
        while loads and loads[0].sequence < step.begin.sequence:
            yield loads.pop(0)
        yield step
    yield from loads


def _step(window: Window, row: int) -> _Step | None:
    frames: dict[tuple[str | None, str], Frame] = {}
    for frame in window.frames_of_call.get(int(window.calls.call[row]), ()):
        if "data" in frame.columns:
            frames[window.kind(frame), frame.phase] = frame
    begin = frames.get(("parameter", "begin"))
    if begin is None or "optimizer" not in begin.columns:
        return None
    return _Step(
        row=row,
        begin=begin,
        end=frames.get(("parameter", "end")),
        slots_begin=frames.get(("slot", "begin")),
        slots_end=frames.get(("slot", "end")),
    )


class _Monitor(Monitor):
    """What both monitors share: they see a run as steps with loads in between.

    Attributes:
        num_continued: steps at which new objects went on from where earlier ones had stopped.
    """

    LOAD: str

    def __init__(self, rule: VarTypeParam) -> None:
        self._rule = rule
        self._goes_across = SAME_OBJECT not in rule.where
        self._loads: list[Load] = []
        self.num_continued = 0

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._forget()
            self._loads.clear()
            return NO_EXAMPLES
        rows: list[int] = []
        holds: list[bool] = []
        explanations: list[Explanation | None] = []
        for event in _events(window, self.LOAD):
            if isinstance(event, Load):
                self._loads.append(event)
                continue
            judged = self._judge(window, event)
            if judged is None:
                continue
            rows.append(event.row)
            holds.append(not isinstance(judged, Explanation))
            explanations.append(judged if isinstance(judged, Explanation) else None)
        if not rows:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            explanation = explanations[index]
            if explanation is None:
                raise IndexError(index)
            return explanation

        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), explain
        )

    @abstractmethod
    def _judge(self, window: Window, step: _Step) -> bool | Explanation | None:
        """Return True where *step* goes on, why not where it does not, None if it tells nothing."""

    @abstractmethod
    def _forget(self) -> None:
        """Forget what the last step left: steps were left out."""

    def _why_new(self, what: str) -> str:
        """Say of a new object why it does not go on: what was loaded into it, or not."""
        # What an optimizer without any state is given, as Accelerate does, is not meant as a load.
        loads = [load for load in self._loads if self.LOAD == MODULE_LOAD or load.outcome != "none"]
        if not loads:
            return f"{what}: no load_state_dict gave it anything"
        load = loads[-1]
        if load.outcome == "none":
            return f"{what}: {load.text} loaded nothing, no name in the checkpoint matched"
        return f"{what}: {load.text} did not load them"


class _ParameterMonitor(_Monitor):
    """Compares parameters with what they were when a step last ended."""

    LOAD = MODULE_LOAD

    def __init__(self, rule: VarTypeParam) -> None:
        super().__init__(rule)
        self._is_frozen = rule.where[: len(FROZEN)] == FROZEN
        self._owners = _Owners()
        # By code of the variable: what it is expected to be, whether that is known, and whether
        # it was left so by a variable of an earlier object.
        self._left = np.zeros(0, np.uint64)
        self._known = np.zeros(0, np.bool_)
        self._is_new = np.zeros(0, np.bool_)
        self._dtype = np.zeros(0, np.int32)

    def _forget(self) -> None:
        self._known[:] = False
        self._is_new[:] = False
        self._owners.forget()

    def _judge(self, window: Window, step: _Step) -> bool | Explanation | None:
        self._grow(len(window.catalog.variables))
        begin = step.begin
        codes, data, holders = begin.variables, begin.columns["data"], begin.columns["optimizer"]
        self._meet(window.catalog, codes, holders)
        dtype = begin.columns.get("dtype", np.zeros(len(codes), np.int32))
        same = data == self._left[codes]
        came = np.zeros(len(codes), np.bool_)
        if any(load.outcome != "none" for load in self._loads):
            # From elsewhere, an earlier checkpoint say: not for us to judge.
            came = self._known[codes] & ~same
            self._accept(codes[came], data[came], dtype[came])
        converted = self._dtype[codes] != dtype
        subject = self._known[codes] & ~came & ~converted
        if self._is_frozen:
            subject &= ~begin.columns["requires_grad"] & begin.columns["in_model"]
        else:
            subject &= holders == window.calls.object[step.row]
        if not self._goes_across:
            subject &= ~self._is_new[codes]
        result = self._result(window, step, subject, same)
        seen = subject | converted | ~self._known[codes]
        self._accept(codes[seen], data[seen], dtype[seen])
        self._loads.clear()
        self._leave(window, step, dtype)
        return result

    def _result(
        self, window: Window, step: _Step, subject: Bool, same: Bool
    ) -> bool | Explanation | None:
        if not subject.any():
            return None
        codes = step.begin.variables
        every = self._rule.quantifier == "every"
        if bool(same[subject].all() if every else same[subject].any()):
            self.num_continued += int(self._is_new[codes[subject]].any())
            return True
        return self._explanation(window, step, subject, subject & ~same)

    def _accept(self, codes: Int32, data: Array, dtype: Array) -> None:
        self._left[codes] = data
        self._known[codes] = True
        self._is_new[codes] = False
        self._dtype[codes] = dtype

    def _leave(self, window: Window, step: _Step, dtype: Array) -> None:
        """Note what the step leaves: of what it holds, and of what it changed besides."""
        end = step.end
        self._owners.trained(
            step.begin.variables[step.begin.columns["optimizer"] != NONE], window.catalog
        )
        if end is None or not np.array_equal(end.variables, step.begin.variables):
            self._known[step.begin.variables] = False
            return
        data = end.columns["data"]
        moved = data != step.begin.columns["data"]
        codes = end.variables
        self._is_new[codes[step.begin.columns["optimizer"] == window.calls.object[step.row]]] = (
            False
        )
        self._accept(codes[moved], data[moved], dtype[moved])

    def _meet(self, catalog: Catalog, codes: Int32, holders: Array) -> None:
        """Let the variables of new objects go on from those of earlier ones."""
        if self._known[codes].all():
            return
        for new, old in self._owners.successions(catalog, codes, holders):
            known = self._known[old]
            new, old = new[known], old[known]
            self._left[new] = self._left[old]
            self._dtype[new] = self._dtype[old]
            self._known[new] = self._is_new[new] = True

    def _grow(self, size: int) -> None:
        missing = size - len(self._known)
        if missing > 0:
            self._left = np.append(self._left, np.zeros(missing, np.uint64))
            self._known = np.append(self._known, np.zeros(missing, np.bool_))
            self._is_new = np.append(self._is_new, np.zeros(missing, np.bool_))
            self._dtype = np.append(self._dtype, np.zeros(missing, np.int32))

    def _explanation(
        self, window: Window, step: _Step, subject: Bool, failing: Bool
    ) -> Explanation:
        catalog = window.catalog
        codes = step.begin.variables[failing]
        names = [catalog.variables[int(code)] for code in codes]
        labels = tuple(sorted(v.label for v in names))
        count = f"{len(names)} of {int(subject.sum())}{' frozen' if self._is_frozen else ''}"
        name = short(catalog.apis[int(window.calls.api[step.row])].name)
        if self._is_new[codes].any():
            owner = names[0].owner
            return Explanation(
                message=f"{count} parameters of the new {short(owner)} are not those that the last "
                f"step left, when {name} runs",
                cause=Cause(
                    fact="not loaded",
                    subjects=labels,
                    text=self._why_new(f"{describe_variables(names)} began anew"),
                ),
            )
        text = f"{describe_variables(names)} changed after the last step and before this one"
        lender = self._lender(step.begin, failing)
        if lender is None:
            text += ", outside any optimizer step"
        else:
            text += (
                f": they hold what `{catalog.variables[lender].label}` of another model held, "
                "swapped and not swapped back"
            )
        return Explanation(
            message=f"{count} parameters were changed between two steps, before {name}",
            cause=Cause(fact="changed outside steps", subjects=labels, text=text),
        )

    def _lender(self, frame: Frame, failing: Bool) -> int | None:
        """Return a variable that was left with what one of the failing ones holds now."""
        known = np.flatnonzero(self._known)
        lenders = known[np.isin(self._left[known], frame.columns["data"][failing])]
        return int(lenders[0]) if len(lenders) else None


class _Owners:
    """Which objects took the place of which: the same class and names, after those had trained."""

    def __init__(self) -> None:
        self._scanned = 0
        self._tables: dict[str, dict[tuple[str, tuple[int, ...]], int]] = {}
        self._owner_of: list[str] = []
        self._met: set[str] = set()
        self._trained: list[str] = []

    def forget(self) -> None:
        """Let nothing go on from what trained so far."""
        self._trained.clear()

    def _update(self, catalog: Catalog) -> None:
        for code in range(self._scanned, len(catalog.variables)):
            variable = catalog.variables[code]
            self._owner_of.append(variable.owner)
            if variable.kind == "parameter":
                table = self._tables.setdefault(variable.owner, {})
                table[variable.name, variable.shape] = code
        self._scanned = len(catalog.variables)

    def trained(self, codes: Int32, catalog: Catalog) -> None:
        """Note that a step left these variables, which optimizers hold."""
        self._update(catalog)
        owners = dict.fromkeys(self._owner_of[code] for code in codes.tolist())
        if self._trained[-len(owners) :] != list(owners):
            self._trained = [o for o in self._trained if o not in owners] + list(owners)

    def successions(
        self, catalog: Catalog, codes: Int32, holders: Array
    ) -> Iterator[tuple[Int64, Int64]]:
        """Yield the variables of each object met for the first time, and whose place they take."""
        self._update(catalog)
        present = dict.fromkeys(self._owner_of[code] for code in codes.tolist())
        held = {self._owner_of[code] for code in codes[holders != NONE].tolist()}
        for owner in present:
            if owner in self._met:
                continue
            self._met.add(owner)
            old = self._predecessor(owner, held)
            if old is None:
                continue
            before = self._tables[old]
            pairs = [
                (code, before[key]) for key, code in self._tables[owner].items() if key in before
            ]
            self._trained.remove(old)
            found = np.array(pairs, np.int64)
            yield found[:, 0], found[:, 1]

    def _predecessor(self, owner: str, held: set[str]) -> str | None:
        names = set(self._tables[owner])
        for old in reversed(self._trained):
            is_over = old != owner and old not in held
            if is_over and _class_of(old) == _class_of(owner):
                common = names & set(self._tables[old])
                if 2 * len(common) > len(names):
                    return old
        return None


def _class_of(owner: str) -> str:
    return owner.partition("#")[0]


@dataclass(slots=True)
class _Left:
    """The slots of an optimizer as its last step left them."""

    codes: Int32
    data: Array


class _SlotMonitor(_Monitor):
    """Compares the state of an optimizer with what it was when its step last ended."""

    LOAD = OPTIMIZER_LOAD

    def __init__(self, rule: VarTypeParam) -> None:
        super().__init__(rule)
        # By code of the optimizer, in the order of their last steps.
        self._left: dict[int, _Left] = {}
        self._met: set[int] = set()

    def _forget(self) -> None:
        self._left.clear()

    def _judge(self, window: Window, step: _Step) -> bool | Explanation | None:
        optimizer = int(window.calls.object[step.row])
        left = self._left.pop(optimizer, None)
        is_new = left is None and optimizer not in self._met
        self._met.add(optimizer)
        if is_new and self._goes_across:
            left = self._predecessor(window, step, optimizer)
        result = None if left is None else self._compare(window, step, left, is_new=is_new)
        self._loads = [load for load in self._loads if load.subject not in (optimizer, NONE)]
        end = step.slots_end
        if end is not None:
            self._left[optimizer] = _Left(end.variables, end.columns["data"])
        return result

    def _predecessor(self, window: Window, step: _Step, optimizer: int) -> _Left | None:
        """Return what the optimizer left whose place a new one takes: of its class, and gone."""
        objects = window.catalog.objects
        alive = set(np.unique(step.begin.columns["optimizer"]).tolist())
        for old in reversed(list(self._left)):
            if old not in alive and _class_of(objects[old]) == _class_of(objects[optimizer]):
                return self._left.pop(old)
        return None

    def _compare(
        self, window: Window, step: _Step, left: _Left, *, is_new: bool
    ) -> bool | Explanation | None:
        now = step.slots_begin
        if (
            now is not None
            and np.array_equal(now.variables, left.codes)
            and np.array_equal(now.columns["data"], left.data)
        ):
            return True
        before = _by_name(window.catalog, left.codes, left.data)
        found = {} if now is None else _by_name(window.catalog, now.variables, now.columns["data"])
        was_loaded = any(
            load.outcome != "none"
            for load in self._loads
            if load.subject in (int(window.calls.object[step.row]), NONE)
        )
        differing = [slot for slot in before if slot in found and found[slot] != before[slot]]
        others = _others(before)
        exchanged = [slot for slot in differing if found[slot] in others[_kind(slot)]]
        name = short(window.catalog.apis[int(window.calls.api[step.row])].name)
        owner = short(window.catalog.objects[int(window.calls.object[step.row])])
        # A few may be alike by chance: all zeros, say.
        if was_loaded and 2 * len(exchanged) > len(differing):
            labels = _parameters(exchanged)
            shown = ", ".join(f"`{label}`" for label in labels[:3])
            return Explanation(
                message=f"{name} finds the state of {len(labels)} parameters under the names of "
                "others",
                cause=Cause(
                    fact="optimizer state of other parameters",
                    subjects=labels,
                    text=f"{self._loads[-1].text} gave {shown} the optimizer state of other "
                    "parameters: state is loaded in the order of the parameters, and that is not "
                    "the order in which it was saved",
                ),
            )
        if was_loaded:
            if not differing and any(slot in found for slot in before):
                self.num_continued += is_new
                return True
            return None
        # Without fewer slots, other names mean that the model is known by another path.
        missing = [slot for slot in before if slot not in found]
        lost = missing if len(found) < len(before) else []
        if not lost and not differing:
            if len(missing) == len(before):
                return None
            self.num_continued += is_new
            return True
        labels = _parameters([*lost, *differing])
        who = f"{len(labels)} parameters" if len(labels) > 3 else ", ".join(labels)
        if lost:
            what = f"the optimizer state of {who} begins anew"
            text = self._why_new(what) if is_new else f"{what}: it was cleared between two steps"
        else:
            text = f"the optimizer state of {who} changed between two steps"
        return Explanation(
            message=f"the state of {owner} is not that which the last step left, when {name} runs",
            cause=Cause(
                fact="optimizer state not loaded" if is_new else "optimizer state changed",
                subjects=labels,
                text=text,
            ),
        )


_Slot = tuple[str, tuple[int, ...]]
"""Name and shape: what has another shape is something else."""


def _by_name(catalog: Catalog, codes: Int32, data: Array) -> dict[_Slot, int]:
    slots = [catalog.variables[code] for code in codes.tolist()]
    return {(v.name, v.shape): h for v, h in zip(slots, data.tolist(), strict=True)}


def _kind(slot: _Slot) -> str:
    """Return ``exp_avg`` for ``fc.weight.exp_avg``."""
    return slot[0].rpartition(".")[2]


def _others(before: dict[_Slot, int]) -> dict[str, set[int]]:
    """Return the values of slots by their kind."""
    values: dict[str, set[int]] = {}
    for slot, value in before.items():
        values.setdefault(_kind(slot), set()).add(value)
    return values


def _parameters(slots: Sequence[_Slot]) -> tuple[str, ...]:
    """Return the names of the parameters that slots belong to."""
    return tuple(sorted({name.rpartition(".")[0] for name, _ in slots}))


class _Proposer(Proposer):
    """Proposes what held; across objects only where new ones did go on from earlier ones."""

    def __init__(self) -> None:
        self._monitors: list[_Monitor] = []
        self._catalog: Catalog | None = None
        self._found: dict[VarTypeParam, None] = {}

    def observe(self, window: Window) -> None:
        if window.catalog is not self._catalog:
            self._catalog = window.catalog
            self._monitors = [
                _SlotMonitor(rule) if rule.var_type == SLOT else _ParameterMonitor(rule)
                for rule in RULES
            ]
        for rule, monitor in zip(RULES, self._monitors, strict=True):
            holds = monitor.observe(window).holds
            if monitor.num_continued or (SAME_OBJECT in rule.where and holds.any()):
                self._found[rule] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=ContinuityRelation.name, params=(rule,)) for rule in self._found
        ]
