"""ContinuityRelation: a step finds the state that the step before left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, Hypothesis, Param, Severity, VarTypeParam
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import Monitor, Proposer, Relation
from traincheck_plugin.relations.between_steps import (
    AFTER_LOADS,
    FROZEN,
    HELD,
    SAME_OBJECT,
    SteadyMonitor,
)
from traincheck_plugin.relations.params import attribute_plan
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.steady_parameters import ParameterMonitor
from traincheck_plugin.relations.steady_slots import SlotMonitor

PARAMETER, SLOT = VAR_TYPES["parameter"], VAR_TYPES["slot"]

_UNCHANGED = VarTypeParam(
    var_type=PARAMETER, attr_name="data", post_value="unchanged", quantifier="every", where=HELD
)
_ACROSS = (
    _UNCHANGED,
    replace(_UNCHANGED, quantifier="some"),
    replace(_UNCHANGED, where=FROZEN),
    replace(_UNCHANGED, var_type=SLOT),
)
_UNDONE = replace(_UNCHANGED, where=(*HELD, SAME_OBJECT, AFTER_LOADS))
RULES = (
    *_ACROSS,
    *(replace(rule, where=(*rule.where, SAME_OBJECT)) for rule in _ACROSS),
    _UNDONE,
)


class ContinuityRelation(Relation):
    """A step finds *every* (or at least *some*) variable as the last step left it.

    ``forall steps s, t in a row: forall (or exists) v: x(v at begin(t)) = x(v at end(s))``, for the
    parameters that the optimizer of t holds, for those that are frozen, and for its state. Where
    a new model or optimizer takes the place of an earlier one of its class, as after a restart
    within the run, a variable goes on from the one of its name. What was loaded from elsewhere is
    not judged: a training may go back to an earlier checkpoint. It is judged where the reference
    loaded something and loaded what there was before again, as averaged weights for an evaluation.

    Catches averaged weights that an evaluation swapped in and not out again, and a checkpoint of
    which nothing was loaded. Cannot see what happens within a step.
    """

    name = "ContinuityRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        rule = _the(params)
        return _monitor(rule)

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
        if rule == _UNDONE:
            return f"{which} between two steps, whatever is loaded in between"
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
        if rule == _UNDONE:
            return None
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


def _monitor(rule: VarTypeParam) -> SteadyMonitor:
    return SlotMonitor(rule) if rule.var_type == SLOT else ParameterMonitor(rule)


class _Proposer(Proposer):
    """Proposes what held; across objects only where new ones did go on from earlier ones.

    Of loads it proposes something where several came between two steps and left nothing behind.
    """

    def __init__(self) -> None:
        self._monitors = PerRun(lambda: [_monitor(rule) for rule in RULES])
        self._found: dict[VarTypeParam, None] = {}

    def observe(self, window: Window) -> None:
        for rule, monitor in zip(RULES, self._monitors.of(window.catalog), strict=True):
            if rule in self._found:
                continue
            holds = monitor.observe(window).holds
            is_plain = SAME_OBJECT in rule.where and rule != _UNDONE
            if monitor.num_continued or (is_plain and holds.any()):
                self._found[rule] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=ContinuityRelation.name, params=(rule,)) for rule in self._found
        ]
