"""ClippedGradientsRelation: what was clipped is what the step uses, and there is something."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.excuse import Excuse
from traincheck_plugin.relations.frames import is_backward
from traincheck_plugin.relations.lifecycle import completed
from traincheck_plugin.relations.loads import told_of
from traincheck_plugin.relations.moments import has_gradients
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, gradient_plan, single
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.role_proposer import RoleProposer
from traincheck_plugin.vocabulary import GIVEN, NONE

_Loss = tuple[int, int]
"""Where a backward is called, and the last model that ran with gradients before it."""


class ClippedGradientsRelation(Relation):
    """Nothing is added to gradients between clipping them and the step.

    ``forall optimizer steps s with a clip since the last step or clear: not exists clip c, backward
    b between c and s with a gradient at begin(b), like one between the last clear and c``. Two
    backwards are alike where the same line calls them after a forward of the same model: those of
    other models are for other gradients.

    And ``forall clips c: a parameter that c is given has a gradient``, where an attribute says so;
    of each line the first failure in a row is excused.

    Catches gradients that are clipped for each micro-batch that they are accumulated of, so that
    each has another weight, and a clip that is given an iterator that an optimizer used up, or the
    parameters of another model. Cannot see a backward of another line that adds to them.
    """

    name = "ClippedGradientsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        clip = single(self.name, params, APIParam)
        return (_Given if clip.argument == GIVEN else _Monitor)(clip.api_full_name)

    def describe(self, params: tuple[Param, ...]) -> str:
        clip = single(self.name, params, APIParam)
        name = short(clip.api_full_name)
        if clip.argument == GIVEN:
            return f"{name} is given parameters that have gradients"
        return f"no backward adds to gradients between {name} and the optimizer step"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        clip = single(self.name, params, APIParam)
        return api_plan(clip) if clip.argument == GIVEN else gradient_plan("backward")

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


class _Monitor(Monitor):
    def __init__(self, clip: str) -> None:
        self._clip = clip
        self._model = NONE
        self._forget()

    def _forget(self) -> None:
        self._since_clear: set[_Loss] = set()
        self._clipped: set[_Loss] = set()
        self._is_added = False

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._forget()
            return NO_EXAMPLES
        clips = set(completed(window, window.rows_of_name(self._clip)).tolist())
        calls, catalog = window.calls, window.catalog
        enabled = catalog.contexts.column("grad_enabled")[calls.context]
        forwards = set(window.rows_of_role("forward").tolist())
        backwards = completed(window, window.rows_of_role("backward"))
        adding = backwards[is_backward(window)[backwards]]
        adds = dict.fromkeys(adding.tolist(), False)
        if clips or self._clipped:
            adds = dict(zip(adds, has_gradients(window, adding).tolist(), strict=True))
        clears = set(window.rows_of_role("zero_grad").tolist())
        steps = set(completed(window, window.rows_of_role("step")).tolist())
        rows, holds = [], []
        for row in sorted(clips | forwards | adds.keys() | clears | steps):
            if row in forwards:
                if enabled[row]:
                    self._model = int(calls.object[row])
            elif row in adds:
                loss = int(calls.source[row]), self._model
                self._is_added |= adds[row] and loss in self._clipped
                self._since_clear.add(loss)
            elif row in clips:
                self._clipped |= self._since_clear
            else:
                if row in steps and self._clipped:
                    rows.append(row)
                    holds.append(not self._is_added)
                self._forget()
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array(holds, np.bool_),
            lambda _: self._explain(),
        )

    def _explain(self) -> Explanation:
        clip = short(self._clip)
        return Explanation(
            message=f"a backward added to gradients after {clip}, before the step that uses them",
            cause=Cause(
                fact="clipped before the last backward",
                subjects=(clip,),
                text=f"{clip} is called for each micro-batch, and not once before the step: what "
                "is accumulated is clipped time after time, and the last one counts most",
            ),
        )


class _Given(Monitor):
    """Judges whether there is a gradient to clip, by lines of the source."""

    def __init__(self, clip: str) -> None:
        self._clip = clip
        self._excuses: PerRun[dict[int, Excuse]] = PerRun(dict)

    def observe(self, window: Window) -> Examples:
        excuses = self._excuses.of(window.catalog)
        rows, holds = [], []
        for row in completed(window, window.rows_of_name(self._clip)).tolist():
            held = told_of(window, row, GIVEN) == ""
            if excuses.setdefault(int(window.calls.source[row]), Excuse()).counts(held):
                rows.append(row)
                holds.append(held)
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), lambda _: self._explain()
        )

    def _explain(self) -> Explanation:
        clip = short(self._clip)
        return Explanation(
            message=f"no parameter that {clip} was given has a gradient",
            cause=Cause(
                fact="gradients are not clipped",
                subjects=(clip,),
                text=f"{clip} is given an iterator that something else, such as an optimizer, has "
                "used up already, the parameters of another model, or gradients that were cleared",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._several = RoleProposer(ClippedGradientsRelation.name, frozenset({"clip"}))

    def observe(self, window: Window) -> None:
        self._several.observe(window)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for hypothesis in self._several.hypotheses():
            yield hypothesis
            [clip] = hypothesis.params
            if isinstance(clip, APIParam):
                yield replace(hypothesis, params=(replace(clip, argument=GIVEN),))
