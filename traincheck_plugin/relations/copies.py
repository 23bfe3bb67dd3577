"""CopyRelation: there is a copy of the model beside it, and it follows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Frame, Window
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
    Proposer,
    Relation,
)
from traincheck_plugin.relations.frames import compare, frames_at
from traincheck_plugin.relations.lifecycle import completed, first_of_each
from traincheck_plugin.relations.naming import describe_variables
from traincheck_plugin.relations.params import pair
from traincheck_plugin.vocabulary import NONE, Array, Bool, Int32, Int64

PARAMETER = VAR_TYPES["parameter"]

PRESENT = VarTypeParam(var_type=PARAMETER, attr_name="copy", pre_value="not_null")
CHANGING = VarTypeParam(var_type=PARAMETER, attr_name="copy", post_value="changed")
STEADY = VarTypeParam(
    var_type=PARAMETER, attr_name="copy", post_value="unchanged", quantifier="every"
)
RULES = (PRESENT, CHANGING, STEADY)

EACH_STEP = ConstantParam(value=1)
"""The rhythm: a pipeline's own, as whether there are copies at all."""


class CopyRelation(Relation):
    """At each training step there is a copy of the model, and it changes (or never) from the last.

    ``forall training steps s, t in a row: exists v: copy(v, begin(t))``, with ``copy(v, begin(t))
    != copy(v, begin(s))`` for some v or ``=`` for all. A copy is a module of the same class and
    structure that no optimizer holds: an average of the weights, a target network, a teacher.

    Catches an average that is the model itself, and one that is never updated. Cannot see copies
    that are no modules, and says nothing of the first step of a run.
    """

    name = "CopyRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_the(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        return {
            PRESENT: "there is a copy of the model in every training step",
            CHANGING: "the copy of the model changes with every training step",
            STEADY: "the copy of the model never changes",
        }[_the(params)]

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return Plan(functions=frozenset(), attributes={"step": frozenset({("parameter", "copy")})})

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _the(params: tuple[Param, ...]) -> VarTypeParam:
    """Return the rule that a hypothesis states.

    Raises:
        InvariantError: it is none of `RULES`, or of another rhythm.
    """
    rule, rhythm = pair(CopyRelation.name, params, VarTypeParam, ConstantParam)
    if rule in RULES and rhythm == EACH_STEP:
        return rule
    raise InvariantError(
        f"{CopyRelation.name} speaks of copies of parameters that are there, that change with each "
        f"step or that never do, got {params}"
    )


class _Monitor(Monitor):
    """Judges the first step of each training window, from the second one on."""

    def __init__(self, rule: VarTypeParam) -> None:
        self._rule = rule
        self._last: tuple[Int32, Array] | None = None
        self._has_begun = False

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._last = None
            return NO_EXAMPLES
        rows = first_of_each(window, completed(window, window.rows_of_role("step")))
        if not len(rows):
            return NO_EXAMPLES
        shown = frames_at(window, rows, PARAMETER, ("copy",), is_begin=True)
        if self._rule == PRESENT:
            judged, holds = np.ones(len(rows), np.bool_), shown != NONE
        else:
            judged, changed = self._compare(window, shown)
            holds = changed == (self._rule == CHANGING)
        # A copy may not be made before a first step is over.
        judged[0] &= self._has_begun
        self._has_begun = True
        if not judged.any():
            return NO_EXAMPLES
        rows, holds, shown = rows[judged], holds[judged], shown[judged].tolist()
        return Examples.of_calls(
            window,
            rows,
            holds,
            lambda index: self._explain(
                window, None if shown[index] == NONE else window.frames[shown[index]]
            ),
        )

    def _compare(self, window: Window, shown: Int64) -> tuple[Bool, Bool]:
        """Return which frames show what the one before shows, and whether it changed."""
        last = np.concatenate([[NONE], shown[:-1]])
        is_same, changed = compare(window, last, shown, "copy")
        if shown[0] != NONE and self._last is not None:
            frame = window.frames[int(shown[0])]
            codes, data = self._last
            is_same[0] = np.array_equal(codes, frame.variables)
            changed[0] = is_same[0] and bool((data != frame.columns["copy"]).any())
        self._last = None
        if shown[-1] != NONE:
            frame = window.frames[int(shown[-1])]
            self._last = frame.variables, frame.columns["copy"].copy()
        return is_same, changed

    def _explain(self, window: Window, frame: Frame | None) -> Explanation:
        if frame is None:
            return Explanation(
                message="there is no copy of the model",
                cause=Cause(
                    fact="no copy",
                    subjects=("copy",),
                    text="a healthy run keeps a copy beside the model, an average of its weights "
                    "say: here there is none, or it is the model itself or shares its parameters",
                ),
            )
        names = [window.catalog.variables[int(code)] for code in np.unique(frame.variables)]
        which = describe_variables(names)
        did = "did not change" if self._rule == CHANGING else "changed"
        return Explanation(
            message=f"the copy of the model {did} from one training step to the next",
            cause=Cause(
                fact=f"the copy {did}",
                subjects=tuple(sorted(v.label for v in names)),
                text=f"the copies of {which} {did} with the last step: "
                + (
                    "the average or target was not updated"
                    if self._rule == CHANGING
                    else "they stay as they are in a healthy run"
                ),
            ),
        )


class _Proposer(Proposer):
    """Proposes what held at least once; of copies that never change only that they do not.

    What lies idle in the process, as the model of an earlier run, need not be there the next time.
    """

    def __init__(self) -> None:
        self._monitors = [_Monitor(rule) for rule in RULES]
        self._found: dict[VarTypeParam, None] = {}

    def observe(self, window: Window) -> None:
        for rule, monitor in zip(RULES, self._monitors, strict=True):
            if monitor.observe(window).holds.any():
                self._found[rule] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=CopyRelation.name, params=(rule, EACH_STEP))
            for rule in self._found
            if rule != PRESENT or CHANGING in self._found
        ]
