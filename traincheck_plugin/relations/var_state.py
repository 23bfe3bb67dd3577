"""VarStateRelation: what variables are when a call begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import (
    ANY,
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
from traincheck_plugin.relations.causes import find_cause
from traincheck_plugin.relations.derived import has, needed
from traincheck_plugin.relations.lifecycle import (
    AUTOGRAD_GRAD,
    Backwards,
    Patience,
    completed,
    rows_of_role,
)
from traincheck_plugin.relations.moments import Moments, moments_at_begin
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.relations.params import pair, variable_plan
from traincheck_plugin.vocabulary import Array, Bool, Int64, Role, Variable

PARAMETER, MODULE = VAR_TYPES["parameter"], VAR_TYPES["module"]

TRAINABLE = (("requires_grad", True), ("in_model", True))
HELD = (("held", True),)

OPTIMIZED = VarTypeParam(
    var_type=PARAMETER,
    attr_name="optimizer",
    pre_value="not_null",
    quantifier="every",
    where=(*TRAINABLE, ("takes_part", True)),
)
LEARNING = VarTypeParam(
    var_type=PARAMETER, attr_name="lr", pre_value="non_zero", quantifier="every", where=HELD
)
FINITE = VarTypeParam(
    var_type=PARAMETER, attr_name="grad", pre_value="finite", quantifier="every", where=HELD
)
SOME_LEARNING = replace(LEARNING, quantifier="some", where=(*HELD, ("requires_grad", True)))
USED = VarTypeParam(
    var_type=PARAMETER, attr_name="used", pre_value=True, quantifier="every", where=HELD
)
ACCOUNTED = VarTypeParam(
    var_type=PARAMETER, attr_name="accounted", pre_value=True, quantifier="every"
)
LEARNABLE = (*TRAINABLE, ("grad", "not_null"))
WHOLE = replace(OPTIMIZED, where=(*LEARNABLE, ("module_held", True)))
THAWED = replace(OPTIMIZED, where=(*LEARNABLE, ("thawed", True)))
BESIDE_FROZEN = replace(OPTIMIZED, where=(*TRAINABLE, ("beside_frozen", True)))
WOVEN = replace(OPTIMIZED, where=(*TRAINABLE, ("woven", True)))
REACHED = VarTypeParam(
    var_type=PARAMETER,
    attr_name="grad",
    pre_value="not_null",
    where=(*HELD, ("requires_grad", True), ("is_first", True)),
)
RECORDED = VarTypeParam(
    var_type=PARAMETER,
    attr_name="ran_with_gradients",
    pre_value=True,
    quantifier="every",
    where=(*HELD, ("requires_grad", True)),
)
WIDE = VarTypeParam(
    var_type=PARAMETER, attr_name="wide", pre_value=True, quantifier="every", where=HELD
)
UNLIKE = VarTypeParam(
    var_type=PARAMETER,
    attr_name="alike",
    pre_value=False,
    quantifier="every",
    where=(
        *(*HELD, ("requires_grad", True), ("grad", "not_null"), ("lr", "non_zero")),
        # In half precision small updates are lost, and tokens that are averaged may be alike.
        *(("wide", True), ("of_layer", True)),
    ),
)
APART = VarTypeParam(
    var_type=PARAMETER,
    attr_name="shared",
    pre_value=False,
    quantifier="every",
    where=(*HELD, ("requires_grad", True), ("grad", "not_null")),
)
SOME_TRAIN_MODE = VarTypeParam(
    var_type=MODULE, attr_name="value", pre_value=True, where=(("learns", True),)
)
TRAIN_MODE = replace(SOME_TRAIN_MODE, quantifier="every")
ACCUMULATED = VarTypeParam(var_type=PARAMETER, attr_name="grad", pre_value="non_zero")

STATES: dict[Role, tuple[VarTypeParam, ...]] = {
    "step": (
        OPTIMIZED,
        LEARNING,
        FINITE,
        SOME_LEARNING,
        USED,
        ACCOUNTED,
        WHOLE,
        THAWED,
        BESIDE_FROZEN,
        WOVEN,
        REACHED,
        RECORDED,
        WIDE,
        UNLIKE,
        APART,
    ),
    "backward": (TRAIN_MODE, SOME_TRAIN_MODE, ACCUMULATED),
}
"""What may hold of variables when a call of the role begins."""

PATIENT = frozenset({LEARNING, SOME_LEARNING, USED, BESIDE_FROZEN, WOVEN, REACHED, RECORDED})
"""What may fail once, but not twice in a row: a warm-up may start at a learning rate of 0, what
alternates leaves a part out now and then, or has yet to run, and where another phase begins there
are gradients left from the last one."""

PATIENCE = {LEARNING: 0.1, SOME_LEARNING: 0.1}
"""How many failures in a row are excused, as a part of all that held: a schedule may end at a
learning rate of 0 a few steps before the training does."""

LED = frozenset({REACHED, RECORDED})
"""What is asked of steps that a backward led to: gradients may be estimated without any."""

PER_STEP = frozenset({SOME_TRAIN_MODE})
"""What one of the calls that lead to a step has to meet: others may look for an attack on the model
as it will be used, or measure it."""

_SENTENCES = {
    OPTIMIZED: (
        "every parameter that requires gradients is in an optimizer when {name} runs",
        "{who} {require} gradients and {be} in no optimizer when {name} runs",
    ),
    LEARNING: (
        "every parameter that {name} holds has a learning rate above 0",
        "the learning rate of {count} of {total} parameters that {name} holds is 0",
    ),
    FINITE: (
        "every gradient that {name} uses is finite",
        "the gradients of {count} of {total} parameters are NaN or infinite when {name} runs",
    ),
    SOME_LEARNING: (
        "at least one parameter that {name} trains has a learning rate above 0",
        "the learning rate of all parameters that {name} trains is 0",
    ),
    USED: (
        "every parameter that {name} holds is in a model that ran, or gets a gradient",
        "{count} of {total} parameters that {name} holds are in no model that ran and get no "
        "gradient",
    ),
    ACCOUNTED: (
        "every parameter that gets a gradient is in a model or an optimizer",
        "{who} {get} gradients, {be} in no optimizer, and not part of the model that ran",
    ),
    WHOLE: (
        "an optimizer that trains a module trains all of its parameters that get gradients",
        "{who} {get} gradients and {be} in no optimizer, unlike others of the same modules",
    ),
    THAWED: (
        "a parameter that is unfrozen on the way and gets gradients is in an optimizer when {name} "
        "runs",
        "{who} {be} no longer frozen, and in no optimizer when {name} runs",
    ),
    BESIDE_FROZEN: (
        "where a model is frozen in part, what gets gradients is in an optimizer when {name} runs",
        "{who} {get} gradients and {be} in no optimizer, in a model that is frozen in part",
    ),
    WOVEN: (
        "groups of parameters leave out none that gets a gradient when {name} runs",
        "{who} {get} gradients and {be} in no group of an optimizer that trains most of the model",
    ),
    REACHED: (
        "gradients reach the first module that runs of those that {name} trains",
        "backward does not reach the first module that {name} trains: {who} {have} no gradient",
    ),
    RECORDED: (
        "no module that {name} trains runs without gradients only",
        "{count} of {total} parameters that {name} trains belong to modules that ran only without "
        "gradients",
    ),
    WIDE: (
        "no parameter that {name} holds is in half precision",
        "{count} of {total} parameters that {name} holds are in half precision",
    ),
    UNLIKE: (
        "no weight that {name} trains has rows that are all alike",
        "all rows of {who} are still the same when {name} runs",
    ),
    APART: (
        "no two parameters that {name} trains are one in memory",
        "{who} are in the same memory when {name} runs",
    ),
    TRAIN_MODE: (
        "every module of what is trained is in training mode when {name} runs",
        "{count} of {total} modules of what is trained are in eval mode when {name} runs",
    ),
    SOME_TRAIN_MODE: (
        "some module of what is trained is in training mode when {name} runs",
        "{who} of what is trained {be} in eval mode when {name} runs",
    ),
    ACCUMULATED: (
        "gradients are there to add to when {name} runs",
        "no gradients were left to add to when {name} ran",
    ),
}
"""For the rules that are proposed: the rule, and what happened instead."""

_EVAL_MODE = (
    "in eval mode",
    "{who} {be} in eval mode while training: eval() was called, and no train() after it",
)
_CAUSES = {
    **dict.fromkeys(
        (OPTIMIZED, WHOLE, THAWED, BESIDE_FROZEN, WOVEN),
        (
            "in no optimizer",
            "{who} {was} not given to an optimizer, or replaced after one was built",
        ),
    ),
    ACCOUNTED: (
        "in no optimizer",
        "{who} {be} not registered with the model (its modules in a plain list or dict, or created "
        "on the way), so that no optimizer got {it}",
    ),
    RECORDED: (
        "ran without gradients",
        "the modules of {who} ran under no_grad, or in a checkpoint whose inputs do not require "
        "gradients: backward does not reach them",
    ),
    WIDE: (
        "half precision",
        "{who} {be} {dtypes}: the model was cast, and what an update changes by less than its "
        "resolution is lost",
    ),
    UNLIKE: (
        "rows are alike",
        "the units of {who} began with the same weights, zeros or another constant: they compute "
        "the same, get the same gradients, and stay the same",
    ),
    APART: (
        "one in memory",
        "{who} have the same memory and a gradient each, so that each step updates it twice: they "
        "were tied by their `.data`, and not as one parameter",
    ),
    TRAIN_MODE: _EVAL_MODE,
    SOME_TRAIN_MODE: _EVAL_MODE,
    ACCUMULATED: (
        "accumulated gradients were cleared",
        "the gradients of the earlier micro-batches were cleared before the step",
    ),
}
"""Where the rule itself tells why: the fact, and the cause. Of others the state tells it."""


class VarStateRelation(Relation):
    """When A is called, *some* / *every* variable that the rule speaks of has a value.

    ``forall calls a of A: exists (or forall) v in V: x(v at begin(a)) = value``. Of the rules in
    `PATIENT` the first failure in a row is no example, or as many as `PATIENCE` tells; those in
    `LED` fail only where a backward led to the step; those in `PER_STEP` hold of all calls since
    the last step of an optimizer where they hold of one. An attribute is a recorded or a derived
    one
    (`traincheck_plugin.relations.derived`), or ``thawed``: the parameter requires gradients and did
    not at an earlier call of A.

    Catches a model that an evaluation left in eval mode, a layer that is in no optimizer, and two
    parameters that are one in memory. Cannot see what happens between the calls.
    """

    name = "VarStateRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        if variables.var_type not in VAR_TYPES.values():
            raise InvariantError(
                f"expected a var_type that is one of {', '.join(VAR_TYPES.values())}, "
                f"got {variables.var_type!r}"
            )
        if variables.pre_value == ANY or variables.post_value != ANY:
            raise InvariantError(f"{self.name} needs a pre_value and no post_value")
        return _Monitor(api, variables)

    def describe(self, params: tuple[Param, ...]) -> str:
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        name = short(api.api_full_name)
        if variables in _SENTENCES:
            return _SENTENCES[variables][0].format(name=name)
        return (
            f"{variables.attr_name} of {variables.quantifier} {variables.var_type} is "
            f"{variables.pre_value} when {name} runs"
        )

    def needs(self, params: tuple[Param, ...]) -> Plan:
        api, variables = pair(self.name, params, APIParam, VarTypeParam)
        plan = variable_plan(api, variables)
        wanted = needed((variables.attr_name, *(name for name, _ in variables.where)))
        if api.role is None or not wanted:
            return plan
        return plan.union(Plan(functions=frozenset(), attributes={api.role: frozenset(wanted)}))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "critical" if params[1] == FINITE else "warning"


# What `np.any` and `np.all` come to, without the way there: it takes longer than a small array.
_ANY, _ALL = np.logical_or.reduce, np.logical_and.reduce

_ONLY = np.zeros(1, np.int64)


@dataclass(frozen=True, slots=True)
class _State:
    """What variables are in some moments: those that the rule speaks of, and those that meet it."""

    subject: Bool
    met: Bool
    holds: Bool


class _Monitor(Monitor):
    def __init__(self, api: APIParam, variables: VarTypeParam) -> None:
        self._api = api
        self._variables = variables
        # What a parameter was at an earlier call is not told by any moment alone.
        self._where = tuple(condition for condition in variables.where if condition[0] != "thawed")
        self._names = [variables.attr_name, *(name for name, _ in self._where if name != "held")]
        self._asks_for_thawed = len(self._where) < len(variables.where)
        self._patience = Patience(PATIENCE.get(variables, 0.0)) if variables in PATIENT else None
        self._backwards = Backwards() if variables in LED else None
        self._is_per_step = variables in PER_STEP
        self._held_since_step = False
        self._was_frozen = np.zeros(0, np.bool_)

    def observe(self, window: Window) -> Examples:
        shown = moments_at_begin(window, self._api.api_full_name, self._variables.var_type)
        shown = [part for part in shown if self._tells(window, part)]
        idle = self._idle(window)
        if not shown:
            if self._is_per_step:
                self._per_step(window, np.empty(0, np.int64), np.empty(0, np.bool_))
            return NO_EXAMPLES
        order = _order(shown)
        thawed = (
            self._thawed(window, shown, order) if self._asks_for_thawed else [None] * len(shown)
        )
        states = [self._state(part, also) for part, also in zip(shown, thawed, strict=True)]
        judged = _joined([_ANY(state.subject, axis=1) for state in states])
        order = order[judged[order]]
        if not len(order) and not self._is_per_step:
            return NO_EXAMPLES
        rows = _joined([part.calls for part in shown])[order]
        holds = _joined([state.holds for state in states])[order]
        if len(idle):
            kept = holds | ~np.isin(rows, idle)
            order, rows, holds = order[kept], rows[kept], holds[kept]
        if self._patience is not None:
            kept = self._patience.kept(window.calls.object[rows], holds)
            order, rows, holds = order[kept], rows[kept], holds[kept]
        if self._is_per_step:
            last, holds = self._per_step(window, rows, holds)
            order, rows = order[last], rows[last]
        if not len(order):
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            number = int(order[index])
            for part, state in zip(shown, states, strict=True):
                if number < len(part):
                    frame = window.frames[int(part.positions[number])]
                    subject, met = state.subject[number], state.met[number]
                    return self._explain(
                        *window.at(int(part.calls[number])), frame, subject & ~met, met
                    )
                number -= len(part)
            raise IndexError(index)

        return Examples.of_calls(window, rows, holds, explain)

    def _tells(self, window: Window, shown: Moments) -> bool:
        """Return whether moments have all that the rule asks for."""
        if self._asks_for_thawed and not shown.has("requires_grad"):
            return False
        for name in self._names:  # noqa: SIM110  # it is asked in the training loop
            if not has(window, shown, name):
                return False
        return True

    def _state(self, shown: Moments, also: Bool | None) -> _State:
        """Return what the variables are; *also* selects among them."""
        param = self._variables
        subject = shown.select(self._where)
        if subject is None:
            subject = np.zeros((len(shown), len(shown.variables)), np.bool_)
        elif also is not None:
            subject = subject & also
        met = subject & shown.matches(param.attr_name, param.pre_value)
        is_every = param.quantifier == "every"
        holds: Bool = _ALL(met == subject, axis=1) if is_every else _ANY(met, axis=1)
        return _State(subject, met, holds)

    def _thawed(self, window: Window, shown: list[Moments], order: Int64) -> list[Bool]:
        """Return which parameters require gradients and did not at an earlier call."""
        missing = len(window.catalog.variables) - len(self._was_frozen)
        self._was_frozen = np.append(self._was_frozen, np.zeros(max(missing, 0), np.bool_))
        if not self._was_frozen.any() and all(p.column("requires_grad").all() for p in shown):
            return [np.zeros((len(part), len(part.variables)), np.bool_) for part in shown]
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        # By code of the variable: number of the moment that first showed it frozen.
        first = np.where(self._was_frozen, -1, len(order))
        numbers = np.split(number, np.cumsum([len(part) for part in shown])[:-1])
        for part, own in zip(shown, numbers, strict=True):
            frozen = np.where(part.column("requires_grad"), len(order), own[:, None])
            first[part.variables] = np.minimum(first[part.variables], frozen.min(axis=0))
        self._was_frozen = first < len(order)
        return [
            part.column("requires_grad") & (first[part.variables] < own[:, None])
            for part, own in zip(shown, numbers, strict=True)
        ]

    def _idle(self, window: Window) -> Int64:
        """Return the steps that no backward led to, where the rule asks for one."""
        if self._backwards is None:
            return np.empty(0, np.int64)
        steps = window.rows_of_name(self._api.api_full_name)
        return steps[~self._backwards.led_to(window, steps)]

    def _per_step(self, window: Window, rows: Int64, holds: Bool) -> tuple[Int64, Bool]:
        """Return the last call before each step of its window, and whether one held until there.

        The calls are returned as indexes.
        """
        ends = window.calls.end
        step_rows = completed(window, rows_of_role(window, "step"))
        steps = ends[step_rows]
        number = np.searchsorted(steps, ends[rows])
        held = np.zeros(len(steps) + 1, np.bool_)
        held[0] = self._held_since_step
        np.logical_or.at(held, number, holds)
        self._held_since_step = bool(held[-1])
        is_last = np.ones(len(rows), np.bool_)
        is_last[:-1] = number[1:] != number[:-1]
        last = np.flatnonzero(is_last & (number < len(steps)))
        positions = window.position_of(rows[last]), window.position_of(step_rows[number[last]])
        last = last[positions[0] == positions[1]]
        return last, held[number[last]]

    def _explain(
        self, window: Window, row: int, frame: Frame, failing: Bool, met: Bool
    ) -> Explanation:
        param = self._variables
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        names = [window.catalog.variables[int(code)] for code in frame.variables[failing]]
        one = len(names) == 1
        happened = _SENTENCES.get(param, ("", "{who} did not have {attr} {value} at {name}"))[1]
        words = {
            "name": name,
            "who": _modules(names) if param.var_type == MODULE else describe_variables(names),
            "get": "gets" if one else "get",
            "have": "has" if one else "have",
            "count": len(names),
            "total": len(names) + int(met.sum()),
            "be": "is" if one else "are",
            "was": "was" if one else "were",
            "it": "it" if one else "them",
            "require": "requires" if one else "require",
            "attr": param.attr_name,
            "value": param.pre_value,
            "dtypes": _dtypes(window, frame, failing),
        }
        cause: Cause | None
        if param in _CAUSES:
            fact, text = _CAUSES[param]
            labels = tuple(sorted(v.label for v in names))
            subjects = (name,) if param == ACCUMULATED else labels
            cause = Cause(fact=fact, subjects=subjects, text=text.format_map(words))
        else:
            cause = find_cause(window, row, frame, failing, met)
        return Explanation(message=happened.format_map(words), cause=cause)


def _dtypes(window: Window, frame: Frame, chosen: Bool) -> str:
    """Return the dtypes of some variables, as far as a frame tells them."""
    if "dtype" not in frame.columns:
        return ""
    codes = np.unique(frame.columns["dtype"][chosen]).tolist()
    return " and ".join(sorted(window.catalog.strings[code] for code in codes))


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _order(shown: Sequence[Moments]) -> Int64:
    """Return the indexes of all frames in the order of their calls."""
    if len(shown) == 1 and len(shown[0]) == 1:
        return _ONLY
    return np.lexsort(
        (
            np.concatenate([part.positions for part in shown]),
            np.concatenate([part.calls for part in shown]),
        )
    )


def _modules(names: Sequence[Variable]) -> str:
    if len(names) <= 3:
        return ", ".join(f"`{v.label}`" for v in names)
    return f"{len(names)} modules (`{names[0].label}`, `{names[1].label}`, ...)"


class _Proposer(Proposer):
    """Proposes every state that held at least once."""

    def __init__(self) -> None:
        self._found: dict[Hypothesis, None] = {}
        self._monitors: dict[Hypothesis, _Monitor] = {}

    def observe(self, window: Window) -> None:
        for hypothesis in dict.fromkeys(_possible(window)):
            if hypothesis in self._found:
                continue
            monitor = self._monitors.setdefault(
                hypothesis,
                _Monitor(*pair(hypothesis.relation, hypothesis.params, APIParam, VarTypeParam)),
            )
            if monitor.observe(window).holds.any():
                self._found[hypothesis] = None
                del self._monitors[hypothesis]

    def hypotheses(self) -> Iterable[Hypothesis]:
        return tuple(self._found)


def _possible(window: Window) -> Iterator[Hypothesis]:
    """Yield what may hold of the APIs that are called."""
    for code in window.api_codes:
        api = window.catalog.apis[code]
        for state in STATES.get(api.role, ()):
            if state == ACCUMULATED and api.name == AUTOGRAD_GRAD:
                continue
            params = (APIParam(api_full_name=api.general, role=api.role), state)
            yield Hypothesis(relation=VarStateRelation.name, params=params)
