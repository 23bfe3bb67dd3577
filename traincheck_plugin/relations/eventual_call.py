"""EventualCallRelation: what was made for the training is used before the run ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES, APIParam, Hypothesis, Param, Severity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import (
    NO_EXAMPLES,
    Cause,
    Examples,
    Explanation,
    Monitor,
    Place,
    Proposer,
    Relation,
)
from traincheck_plugin.relations.frames import frames_at
from traincheck_plugin.relations.lifecycle import (
    completed,
    label,
    named_optimizer,
    rows_of_role,
)
from traincheck_plugin.relations.moments import by_stack
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, gradient_plan, pair
from traincheck_plugin.vocabulary import NONE, GradState, Int32, Int64

PARAMETER = VAR_TYPES["parameter"]

MIN_BACKWARDS = 3
"""Backwards that gave gradients to parameters which no step used, before anyone is suspicious."""


class EventualCallRelation(Relation):
    """What A makes is called B on before the run ends.

    ``forall optimizers o that a scheduler was made for, and that stepped in two epochs: exists
    call of B on a scheduler of o``, or ``forall optimizers o that were made, with parameters that
    get gradients and that no step updates: exists call of B on o``.

    Schedulers are followed by their optimizer, since one of them may call another, or wait for it.
    Each call of B is an example that holds; what was never called shows only at the end of a run
    that ended by itself, and a schedule by epochs not before the second epoch.

    Catches schedulers that manual optimization in Lightning never steps, and the second optimizer
    of a GAN that was forgotten. Cannot see that B is called too rarely.
    """

    name = "EventualCallRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        made, called = pair(self.name, params, APIParam, APIParam)
        return (_Schedulers if called.role == "scheduler" else _Optimizers)(made, called)

    def describe(self, params: tuple[Param, ...]) -> str:
        _, called = pair(self.name, params, APIParam, APIParam)
        name = called.api_full_name.rpartition(".")[0]
        what = "optimizer with a scheduler" if called.role == "scheduler" else "optimizer"
        return f"every {what} sees a call of {short(name)}.step before the run ends"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        made, called = pair(self.name, params, APIParam, APIParam)
        if called.role == "scheduler":
            return api_plan(made, called)
        return gradient_plan("backward", "step")

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


@dataclass(slots=True)
class _Made:
    """An optimizer that was made, or for which a scheduler was.

    Attributes:
        what: the class of what was made.
        source: where, a code.
        epochs: in which its optimizer stepped.
        last: where was the last sign that it is in use.
        num_backwards: that its parameters have gradients of.
        codes: parameters that got them.
    """

    what: str
    source: int
    epochs: set[int] = field(default_factory=set)
    last: Place | None = None
    num_backwards: int = 0
    codes: set[int] = field(default_factory=set)


class _Monitor(Monitor):
    """Keeps what was made and waits to be called."""

    def __init__(self, made: APIParam, called: APIParam) -> None:
        self._made = made.api_full_name
        self._called = called
        self._waiting: dict[str, _Made] = {}
        self._used: set[str] = set()
        self._sees_steps = False

    def observe(self, window: Window) -> Examples:
        made = window.rows_of_name(self._made)
        called = completed(window, window.rows_of_name(self._called.api_full_name))
        about = self._about(window)[called].tolist()
        # The first of each: of the same code the one that comes first stays.
        first = dict(zip(reversed(about), reversed(called.tolist()), strict=True))
        new = [row for row in first.values() if self._key(window, row) not in self._used]
        # Who waits is another matter from the window on in which one is made or called first.
        turns = {0, *(window.start_of(row) for row in (*made.tolist(), *new))}
        for start, stop in pairwise([*sorted(turns), len(window.calls)]):
            for row in made.tolist():
                if start <= row < stop:
                    self._wait(window, row)
            for row in new:
                if start <= row < stop:
                    key = self._key(window, row)
                    self._used.add(key)
                    self._waiting.pop(key, None)
            if self._waiting:
                self._follow(window, slice(start, stop))
        # Where everything is compiled, no step is ever seen.
        self._sees_steps |= bool(len(window.rows_of_role("step")))
        if not len(called):
            return NO_EXAMPLES
        holds = np.ones(len(called), np.bool_)
        return Examples.of_calls(window, called, holds, lambda row: Explanation(message=""))

    def _wait(self, window: Window, row: int) -> None:
        key = self._key(window, row)
        if key and key not in self._used:
            api = window.catalog.apis[int(window.calls.api[row])]
            what = short(api.name.rpartition(".")[0])
            self._waiting.setdefault(key, _Made(what, int(window.calls.source[row])))

    def finish(self) -> Examples:
        found = [
            (key, made, made.last)
            for key, made in self._waiting.items()
            if made.last is not None and self._is_left(made)
        ]
        if not found or not self._sees_steps:
            return NO_EXAMPLES
        # What is wrong is where it was made.
        places = [replace(last, source=made.source) for _, made, last in found]
        return Examples.of_failures(places, lambda row: self._explain(*found[row][:2]))

    @abstractmethod
    def _about(self, window: Window) -> Int32:
        """Return for all calls codes that tell optimizers apart that they are about."""

    @abstractmethod
    def _key(self, window: Window, row: int) -> str:
        """Return the label of the optimizer that the call is about."""

    @abstractmethod
    def _follow(self, window: Window, some: slice) -> None:
        """Look in some of the calls whether those that wait are in use."""

    @abstractmethod
    def _is_left(self, made: _Made) -> bool:
        """Return whether it was due to be called and was not."""

    @abstractmethod
    def _explain(self, key: str, made: _Made) -> Explanation:
        """Say what is wrong with it."""


class _Schedulers(_Monitor):
    def _about(self, window: Window) -> Int32:
        return window.calls.inputs

    def _key(self, window: Window, row: int) -> str:
        return named_optimizer(window, row)

    def _follow(self, window: Window, some: slice) -> None:
        rows = _within(completed(window, rows_of_role(window, "step")), some)
        objects = window.calls.object[rows]
        epochs = window.catalog.contexts.column("epoch")[window.calls.context[rows]]
        for key, made in self._waiting.items():
            code = window.catalog.objects.find(key)
            own = np.flatnonzero(objects == code)
            if code != NONE and len(own):
                made.epochs.update(epochs[own].tolist())
                made.last = Place.of(window, int(rows[own[-1]]))

    def _is_left(self, made: _Made) -> bool:
        return len(made.epochs) > 1

    def _explain(self, key: str, made: _Made) -> Explanation:
        return Explanation(
            message=f"{made.what} was made and no scheduler of {short(key)} was ever stepped",
            cause=Cause(
                fact="calls of LRScheduler.step for each step",
                subjects=("LRScheduler.step",),
                text="the learning rate does not follow its schedule: the scheduler is not stepped",
            ),
        )


class _Optimizers(_Monitor):
    def __init__(self, made: APIParam, called: APIParam) -> None:
        super().__init__(made, called)
        # What any step is responsible for: an optimizer that was replaced waits for nothing.
        self._stepped: set[int] = set()

    def _about(self, window: Window) -> Int32:
        return window.calls.object

    def _key(self, window: Window, row: int) -> str:
        return label(window, row)

    def _follow(self, window: Window, some: slice) -> None:
        steps = _within(rows_of_role(window, "step"), some)
        backwards = _within(rows_of_role(window, "backward"), some)
        begins = frames_at(window, steps, PARAMETER, ("grad", "optimizer"), is_begin=True)
        ends = frames_at(window, backwards, PARAMETER, ("grad", "optimizer"), is_begin=False)
        for indexes, shown in by_stack(window, begins):
            targets = window.calls.object[steps[indexes]]
            mine = (shown.column("optimizer") == targets[:, None]).any(axis=0)
            self._stepped.update(shown.variables[mine].tolist())
        for key, made in self._waiting.items():
            code = window.catalog.objects.find(key)
            last = NONE
            for indexes, shown in by_stack(window, ends):
                has = shown.column("grad") >= int(GradState.NON_ZERO)
                own = has & (shown.column("optimizer") == code)
                some_own = np.flatnonzero(own.any(axis=1))
                if len(some_own):
                    made.codes.update(shown.variables[own.any(axis=0)].tolist())
                    made.num_backwards += len(some_own)
                    last = max(last, int(backwards[indexes[some_own[-1]]]))
            if last != NONE:
                made.last = Place.of(window, last)

    def _is_left(self, made: _Made) -> bool:
        return made.num_backwards >= MIN_BACKWARDS and not made.codes <= self._stepped

    def _explain(self, key: str, made: _Made) -> Explanation:
        return Explanation(
            message=f"{short(key)} was made, its parameters got gradients, and it never stepped",
            cause=Cause(
                fact="an optimizer never steps",
                subjects=(key,),
                text=f"{short(key)} never steps: its parameters are not updated",
            ),
        )


def _within(rows: Int64, some: slice) -> Int64:
    return rows[np.searchsorted(rows, some.start) : np.searchsorted(rows, some.stop)]


class _Proposer(Proposer):
    """Proposes for what is made the step that goes with it."""

    def __init__(self) -> None:
        self._made: dict[str, APIParam] = {}
        self._called: dict[str, APIParam] = {}

    def observe(self, window: Window) -> None:
        for code in window.api_codes:
            api = window.catalog.apis[code]
            owner = api.general.rpartition(".")[0]
            param = APIParam(api_full_name=api.general, role=api.role)
            if api.role == "construct":
                self._made[owner] = param
            elif api.role in ("step", "scheduler"):
                self._called[owner] = param

    def hypotheses(self) -> Iterable[Hypothesis]:
        for owner in self._made.keys() & self._called.keys():
            params = (self._made[owner], self._called[owner])
            yield Hypothesis(relation=EventualCallRelation.name, params=params)
