"""EvaluatedModelRelation: a model that is evaluated is in eval mode."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
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
from traincheck_plugin.relations.frames import is_backward, times_of
from traincheck_plugin.relations.lifecycle import label
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.samples import SAMPLES_PLAN, Given, KnownSamples, given
from traincheck_plugin.vocabulary import Role

EVALUATION = VAR_TYPES["evaluation"]
IN_EVAL_MODE = VarTypeParam(
    var_type=EVALUATION, attr_name="value", pre_value=False, quantifier="every"
)

MIN_FORWARDS = 3
"""Forwards without gradients that show in which mode a model is."""

MIN_SAMPLES = 16
"""So many samples are no coincidence, and of as many that were given last it is asked whether they
came again."""

MIN_AGAIN = 0.9
MAX_SETS = 1 << 10
"""Batches that are evaluated of which it is kept in mind that they were."""

_ITER = "torch.utils.data.DataLoader.__iter__"
_ROLES: tuple[Role, ...] = ("data", "forward", "backward")


class EvaluatedModelRelation(Relation):
    """A model is in eval mode where it is evaluated.

    Of all pipelines: ``forall evaluations f of a model m with parts that act otherwise in training
    mode: not training(m, f)``. An evaluation is a forward without gradients, after a backward
    through the class of m, on samples none of which it was trained on: on the second or a later
    batch of a start of a loader that nothing was trained on, without a backward since that start,
    with m run once for each batch; or on the same samples as another forward before it, with a
    backward in between and m run once on them each time, though what it is trained on comes again.
    With a class, where the reference had it so: ``forall f without gradients, m of that class: not
    training(m, f)``.

    Catches an evaluation without ``model.eval()``, whose dropout hides units and whose batch norm
    learns from the data that is held out. Cannot see, without a reference, modules of one's own
    that ask for the mode.
    """

    name = "EvaluatedModelRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        claim = _claim(params)
        return _Lawful() if claim is None else _Monitor(claim)

    def describe(self, params: tuple[Param, ...]) -> str:
        claim = _claim(params)
        if claim is None:
            return "a model that is trained is in eval mode when it is evaluated on other data"
        return f"{claim} is in eval mode when it runs without gradients"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        wanted = frozenset({("evaluation", "value"), ("evaluation", "number")})
        plan = Plan(functions=frozenset(), attributes={"forward": wanted})  # type: ignore[dict-item]
        return plan.union(SAMPLES_PLAN) if _claim(params) is None else plan

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


def _claim(params: tuple[Param, ...]) -> str | None:
    """Return the class that a hypothesis is about; None for that of all pipelines.

    Raises:
        InvariantError: it is none of this relation.
    """
    match params:
        case (VarTypeParam() as claim,) if claim == IN_EVAL_MODE:
            return None
        case (VarNameParam(var_type=kind, var_name=name),) if kind == EVALUATION:
            return name
    raise InvariantError(
        f"{EvaluatedModelRelation.name} expects one parameter about the mode of what runs without "
        f"gradients, got {params}"
    )


class _Run(NamedTuple):
    """A forward without gradients.

    Attributes:
        row: of the call.
        model: class of the module.
        trains: whether it is in training mode.
        matters: whether some part of it acts otherwise for that.
    """

    row: int
    model: str
    trains: bool
    matters: bool


def _runs(window: Window) -> dict[int, _Run]:
    """Return the forwards without gradients by their rows."""
    found: dict[int, _Run] | None = window.cache.get(_runs)
    if found is None:
        found = window.cache[_runs] = {}
        for row, frame in frames_of(window, "evaluation"):
            trains, number = (float(frame.columns[name][0]) for name in ("value", "number"))
            found[row] = _Run(row, class_name(label(window, row)), trains > 0, number > 0)
    return found


@dataclass(slots=True)
class _Start:
    """A start of a loader.

    Attributes:
        number: of the batches that it delivered.
        is_trained_on: whether there was a backward since.
        runs: of models on the last batch, and on the one before.
    """

    number: int = 0
    is_trained_on: bool = False
    runs: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)

    def deliver(self) -> None:
        """Take the next batch."""
        self.number += 1
        self.runs, self.before = Counter(), self.runs


class _Samples:
    """What a model is given as one of its arguments, with gradients and without."""

    def __init__(self) -> None:
        self._trained = KnownSamples()
        self._again: deque[bool] = deque(maxlen=MIN_SAMPLES)
        # Of what was evaluated, by the keys, how many backwards there were, and whether once.
        self._evaluated: dict[tuple[int, ...], tuple[int, bool]] = {}

    def train(self, keys: list[int]) -> None:
        """Take note of what is given with gradients."""
        self._again.extend(self._trained.among(keys))
        self._trained.add(keys)

    def has_trained(self, keys: list[int]) -> bool:
        """Return whether some of what is given was given with gradients."""
        return any(self._trained.among(keys))

    def evaluate(self, keys: list[int], num_backwards: int) -> bool:
        """Take note of what is given without; return whether it comes again as in an evaluation."""
        key = tuple(keys)
        before, is_single = self._evaluated.get(key, (num_backwards, False))
        comes_again = key in self._evaluated and before < num_backwards
        if key in self._evaluated or len(self._evaluated) < MAX_SETS:
            self._evaluated[key] = num_backwards, comes_again or key not in self._evaluated
        return (
            comes_again
            and is_single
            and len(keys) >= MIN_SAMPLES
            and len(self._again) == MIN_SAMPLES
            and sum(self._again) >= MIN_AGAIN * MIN_SAMPLES
        )


class _Training:
    """Follows a run: what is trained, on the batches of which loaders, and what is evaluated."""

    def __init__(self) -> None:
        self._samples: dict[tuple[str, str], _Samples] = {}
        self._num_backwards = 0
        self._starts: dict[str, _Start] = {}
        self._last = ""
        # Loaders that delivered since the last forward, and those whose batches are in a graph.
        self._fed: set[str] = set()
        self._used: set[str] = set()
        self._trained_on: set[str] = set()
        # Classes of models in a graph, and of those that are trained: a copy of one has its class.
        self._models: set[str] = set()
        self._trained: set[str] = set()

    def evaluated(self, window: Window) -> Iterator[_Run]:
        """Yield what the next window evaluates."""
        calls, runs = window.calls, _runs(window)
        by_role = [window.rows_of_role(role) for role in _ROLES]
        rows = np.concatenate(by_role)
        roles = np.repeat(_ROLES, [len(some) for some in by_role])
        moments = np.where(roles == "forward", calls.begin[rows], calls.end[rows])
        order = np.argsort(times_of(window, rows, moments), kind="stable")
        starts = set(window.rows_of_name(_ITER).tolist())
        enabled = window.catalog.contexts.column("grad_enabled")
        adds = is_backward(window)
        samples: dict[int, list[Given]] = {}
        for one in given(window):
            samples.setdefault(one.row, []).append(one)
        for row, role in zip(rows[order].tolist(), roles[order].tolist(), strict=True):
            if role == "data":
                self._deliver(label(window, row), begins=row in starts)
            elif row in runs:
                if self._is_evaluation(runs[row], samples.get(row, [])):
                    yield runs[row]
            elif role == "forward" and enabled[calls.context[row]]:
                for one in samples.get(row, ()):
                    self._given(one).train(one.keys)
                self._models.add(class_name(label(window, row)))
                self._used |= self._fed
                self._fed.clear()
            elif role == "backward" and adds[row]:
                self._go_backward()

    def _deliver(self, loader: str, *, begins: bool) -> None:
        if begins:
            self._starts[loader] = _Start()
            return
        self._starts.setdefault(loader, _Start()).deliver()
        self._last = loader
        self._fed.add(loader)
        if loader in self._used:
            # Nothing came of the batch before.
            self._used.clear()
            self._models.clear()

    def _given(self, one: Given) -> _Samples:
        return self._samples.setdefault((one.model, one.name), _Samples())

    def _is_evaluation(self, run: _Run, samples: list[Given]) -> bool:
        number = self._num_backwards
        comes_again = [self._given(one).evaluate(one.keys, number) for one in samples]
        is_of_loader = self._is_of_loader(run)
        return (
            run.matters
            and run.model in self._trained
            and (is_of_loader or any(comes_again))
            and not any(map(self._has_trained, samples))
        )

    def _has_trained(self, one: Given) -> bool:
        # The model itself, or one that it is a copy of.
        alike = (known for (_, name), known in self._samples.items() if name == one.name)
        return any(known.has_trained(one.keys) for known in alike)

    def _is_of_loader(self, run: _Run) -> bool:
        self._fed.clear()
        start = self._starts.get(self._last)
        if start is None:
            return False
        start.runs[run.model] += 1
        return (
            self._last not in self._trained_on
            and not start.is_trained_on
            and start.number > 1
            and start.runs[run.model] == start.before[run.model] == 1
        )

    def _go_backward(self) -> None:
        self._num_backwards += 1
        for start in self._starts.values():
            start.is_trained_on = True
        self._trained |= self._models
        self._trained_on |= self._used
        self._models.clear()
        self._used.clear()


class _Judge(Monitor):
    """Judges some forwards without gradients."""

    @abstractmethod
    def judged(self, window: Window) -> list[_Run]:
        """Return those of the next window."""

    def observe(self, window: Window) -> Examples:
        judged = self.judged(window) if window.observed else []
        if not judged:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([run.row for run in judged], np.int64),
            np.array([not run.trains for run in judged], np.bool_),
            lambda index: _explain(judged[index].model),
        )


class _Lawful(_Judge):
    def __init__(self) -> None:
        self._training = PerRun(_Training)

    def judged(self, window: Window) -> list[_Run]:
        return list(self._training.of(window.catalog).evaluated(window))


class _Monitor(_Judge):
    """Judges the models of one class."""

    def __init__(self, root: str) -> None:
        self._root = root

    def judged(self, window: Window) -> list[_Run]:
        return [run for run in _runs(window).values() if run.model == self._root]


def _explain(model: str) -> Explanation:
    return Explanation(
        message=f"{model} is evaluated in training mode",
        cause=Cause(
            fact="training mode without gradients",
            subjects=(model,),
            text=f"no `eval()` of {model} comes before: its dropout hides units, and its batch "
            "norm takes the statistics of the batch and learns them",
        ),
    )


class _Proposer(Proposer):
    def __init__(self) -> None:
        self._training = PerRun(_Training)
        self._is_shown = False
        self._modes: dict[str, Counter[bool]] = {}

    def observe(self, window: Window) -> None:
        if not window.observed:
            return
        for run in self._training.of(window.catalog).evaluated(window):
            self._is_shown |= not run.trains
        for run in _runs(window).values():
            self._modes.setdefault(run.model, Counter())[run.trains] += 1

    def hypotheses(self) -> Iterable[Hypothesis]:
        name = EvaluatedModelRelation.name
        if self._is_shown:
            yield Hypothesis(relation=name, params=(IN_EVAL_MODE,))
        for root, modes in self._modes.items():
            if not modes[True] and modes[False] >= MIN_FORWARDS:
                who = VarNameParam(var_name=root, var_type=EVALUATION, attr_name="value")
                yield Hypothesis(relation=name, params=(who,))
