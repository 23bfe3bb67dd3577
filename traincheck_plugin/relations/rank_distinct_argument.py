"""RankDistinctArgumentRelation: ranks that share the data do not all see the same of it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import (
    VAR_TYPES,
    Hypothesis,
    Param,
    Severity,
    VarNameParam,
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
from traincheck_plugin.relations.params import passing_plan
from traincheck_plugin.vocabulary import VariableKind

REPLICAS = VarTypeParam(
    var_type=VAR_TYPES["input"],
    attr_name="data",
    quantifier="every",
    where=(("between", "replicas"),),
)
"""Of ranks that are known to share the data among them."""

INPUTS = VarNameParam(var_name="inputs", var_type=VAR_TYPES["input"], attr_name="data")
"""Of all ranks, however they are related: the habit of one pipeline."""

_NAMES = {VAR_TYPES["input"]: "inputs", VAR_TYPES["generator"]: "random states"}


class RankDistinctArgumentRelation(Relation):
    """Ranks that share the data among them do not all see the same in a step.

    ``forall steps t: exists ranks r, s: x(r, t) != x(s, t)``, where x is what the models are given
    in training, or the state of a random generator when their forward begins, and is not what it
    was in the step before: what never changes may be the same everywhere.

    Catches a DataLoader without a DistributedSampler, with which each rank trains on the same
    batches, and, where the reference seeded each rank differently, dropout that is the same on all
    of them. Cannot see some ranks that agree while others do not. Says nothing of ranks of tensor
    or pipeline parallelism, which are meant to see the same.
    """

    name = "RankDistinctArgumentRelation"
    is_across_ranks = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(_the(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        param = _the(params)
        if isinstance(param, VarTypeParam):
            return "data-parallel ranks are not all given the same inputs"
        who = f" of `{param.var_name}`" if param.var_type == VAR_TYPES["generator"] else ""
        return f"the {_NAMES[param.var_type]}{who} are not the same on all ranks"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return passing_plan(_kind(_the(params)))

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _the(params: tuple[Param, ...]) -> VarTypeParam | VarNameParam:
    """Return the one parameter of a hypothesis.

    Raises:
        InvariantError: there is another number of them, or it is none that can be checked.
    """
    if len(params) == 1:
        [param] = params
        if param == REPLICAS or (isinstance(param, VarNameParam) and param.var_type in _NAMES):
            return param
    raise InvariantError(
        f"{RankDistinctArgumentRelation.name} expects one VarTypeParam about the inputs of "
        f"replicas, or one VarNameParam about inputs or a random generator, got {params}"
    )


def _kind(param: VarTypeParam | VarNameParam) -> VariableKind:
    return "input" if param.var_type == VAR_TYPES["input"] else "generator"


class _Monitor(Monitor):
    def __init__(self, param: VarTypeParam | VarNameParam) -> None:
        self._kind = _kind(param)
        self._name = param.var_name if isinstance(param, VarNameParam) else ""
        self._before: dict[int, int] = {}

    def observe(self, window: Window) -> Examples:
        frames, values = [], []
        for frame in window.frames:
            value = self._value(window, frame)
            if value is not None:
                frames.append(frame)
                values.append(value)
        contexts = [window.catalog.contexts[frame.context] for frame in frames]
        before = self._before
        self._before = dict(zip([one.rank for one in contexts], values, strict=True))
        moved = [
            before.get(one.rank, value) != value
            for one, value in zip(contexts, values, strict=True)
        ]
        groups: dict[tuple[int, int], list[int]] = {}
        for number, one in enumerate(contexts):
            if moved[number] and (self._name or one.data_parallel >= 0):
                place = (one.tensor_parallel, one.pipeline_parallel)
                groups.setdefault(place, []).append(number)
        several = [group for group in groups.values() if len(group) > 1]
        if not several:
            return NO_EXAMPLES
        alike = [group for group in several if len({values[number] for number in group}) == 1]
        chosen = (alike or several)[0]
        frame = frames[chosen[0]]
        row = window.row_of_call[frame.call]
        explanation = self._explain([contexts[number].rank for number in chosen])
        return Examples(
            holds=np.array([not alike]),
            context=np.array([frame.context], np.int32),
            source=window.calls.source[[row]],
            sequence=np.array([frame.sequence], np.int64),
            time_ns=window.calls.end_ns[[row]],
            explain=lambda _: explanation,
        )

    def _value(self, window: Window, frame: Frame) -> int | None:
        """Return what is compared of a frame; None of others."""
        if window.kind(frame) != self._kind or "data" not in frame.columns:
            return None
        for code, value in zip(
            frame.variables.tolist(), frame.columns["data"].tolist(), strict=True
        ):
            if not self._name or window.catalog.variables[code].name == self._name:
                return int(value)
        return None

    def _explain(self, ranks: list[int]) -> Explanation:
        who = f"all {len(ranks)} ranks" if len(ranks) > 2 else f"ranks {ranks[0]} and {ranks[1]}"
        if self._kind == "generator":
            return Explanation(
                message=f"{who} have the same random state in training",
                cause=Cause(
                    fact="the same random numbers on each rank",
                    subjects=(self._name,),
                    text=f"{who} draw the same random numbers, for dropout too: "
                    "they were seeded alike",
                ),
            )
        return Explanation(
            message=f"{who} were given the same inputs",
            cause=Cause(
                fact="the same data on each rank",
                subjects=("inputs",),
                text=f"{who} see the same data in the same step: the data is not distributed over "
                "them, as a DistributedSampler does",
            ),
        )


class _Proposer(Proposer):
    """Proposes what there is something to see of."""

    def __init__(self) -> None:
        self._params: dict[Param, None] = {}

    def observe(self, window: Window) -> None:
        for frame in window.frames:
            kind = window.kind(frame)
            if kind == "input":
                self._params[INPUTS] = None
                if window.catalog.contexts[frame.context].data_parallel >= 0:
                    self._params[REPLICAS] = None
            elif kind == "generator":
                for code in frame.variables.tolist():
                    name = window.catalog.variables[code].name
                    generator = VarNameParam(
                        var_name=name, var_type=VAR_TYPES["generator"], attr_name="data"
                    )
                    self._params[generator] = None

    def hypotheses(self) -> Iterable[Hypothesis]:
        return [
            Hypothesis(relation=RankDistinctArgumentRelation.name, params=(param,))
            for param in self._params
        ]
