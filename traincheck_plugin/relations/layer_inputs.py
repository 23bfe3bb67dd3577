"""LayerInputsRelation: gradients go on from the layers from which they went on in the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import ConstantParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.losses import BACKWARD, MIN_BACKWARDS, EarlyLosses, whose
from traincheck_plugin.relations.params import api_plan
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.vocabulary import ENTRY


class LayerInputsRelation(Relation):
    """Gradients go to the inputs of the layers to whose inputs they went in the reference.

    ``forall backwards b after a forward of C, in the first steps that have one, forall layers l of
    the graph of b that are named: a gradient goes to the input of l``. Layers are linear ones and
    convolutions, by their weights; named are those to whose inputs gradients went in all losses of
    the reference that they are in the graph of. The first failure in a row is excused, and nothing
    is said once a state was loaded into an optimizer.

    Catches a straight-through estimator that is left out, and features that are detached within a
    model whose first part learns from another term of the loss. Cannot see what compiled code and
    reentrant checkpoints hide, nor layers with weights of their own that are computed.
    """

    name = "LayerInputsRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_known(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        after, names = _known(params)
        shown = ", ".join(f"`{name}`" for name in sorted(names)[:3])
        more = ", ..." if len(names) > 3 else ""
        return f"gradients of {whose(after)} go on to the inputs of {shown}{more}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        _known(params)
        return api_plan(BACKWARD)

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _known(params: tuple[Param, ...]) -> tuple[str, frozenset[str]]:
    """Return a class, and the names of the weights of layers.

    Raises:
        InvariantError: the parameters are none of this relation.
    """
    if len(params) == 2 and params[0] == BACKWARD and isinstance(params[1], ConstantParam):
        value = params[1].value
        if isinstance(value, tuple) and len(value) > 1 and all(isinstance(v, str) for v in value):
            after, *names = value
            return after, frozenset(names)
    raise InvariantError(
        f"{LayerInputsRelation.name} expects the backward as APIParam, and a class with names of "
        f"weights as ConstantParam, got {params}"
    )


@lru_cache(maxsize=1024)
def _parse(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the layers to whose inputs gradients go, and the others."""
    told = text.split()
    others = frozenset(one.removeprefix(ENTRY) for one in told if one.startswith(ENTRY))
    # One that runs twice may be both.
    return frozenset(one for one in told if not one.startswith(ENTRY)) - others, others


class _Monitor(Monitor):
    """Judges the losses after one class.

    Args:
        after: the class.
        names: of the weights.
    """

    def __init__(self, after: str, names: frozenset[str]) -> None:
        self._after = after
        self._names = names
        self._early = PerRun(EarlyLosses)
        self._excuse = Excuse()

    def observe(self, window: Window) -> Examples:
        rows, failed = [], []
        for loss in self._early.of(window.catalog).among(window):
            if loss.after != self._after or not loss.layers:
                continue
            passed, cut = (layers & self._names for layers in _parse(loss.layers))
            if (passed or cut) and self._excuse.counts(not cut):
                rows.append(loss.row)
                failed.append(sorted(cut))
        if not rows:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array(rows, np.int64),
            np.array([not cut for cut in failed], np.bool_),
            lambda index: self._explain(failed[index]),
        )

    def _explain(self, cut: list[str]) -> Explanation:
        shown = ", ".join(f"`{name}`" for name in cut[:3]) + (", ..." if len(cut) > 3 else "")
        return Explanation(
            message=f"no gradient of {whose(self._after)} goes on to what {shown} is given; in the "
            "reference one does",
            cause=Cause(
                fact="gradients end within the model",
                subjects=tuple(cut),
                text=f"what {shown} is given is detached, computed under no_grad or rounded: what "
                "comes before it does not learn from what comes after",
            ),
        )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._early = PerRun(EarlyLosses)
        self._passed: dict[str, Counter[str]] = {}
        self._cut: dict[str, set[str]] = {}

    def observe(self, window: Window) -> None:
        for loss in self._early.of(window.catalog).among(window):
            passed, cut = _parse(loss.layers)
            self._passed.setdefault(loss.after, Counter()).update(passed)
            self._cut.setdefault(loss.after, set()).update(cut)

    def hypotheses(self) -> Iterable[Hypothesis]:
        for after, passed in self._passed.items():
            names = {name for name, number in passed.items() if number >= MIN_BACKWARDS}
            names -= self._cut[after]
            if names:
                value = (after, *sorted(names))
                yield Hypothesis(
                    relation=LayerInputsRelation.name,
                    params=(BACKWARD, ConstantParam(value=value)),
                )
