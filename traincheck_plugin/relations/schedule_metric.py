"""ScheduleMetricRelation: a schedule that waits for a metric takes the right way for better."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam, ConstantParam, Hypothesis, Param, Severity
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
from traincheck_plugin.relations.lifecycle import completed, label
from traincheck_plugin.relations.naming import short
from traincheck_plugin.relations.params import api_plan, pair, three
from traincheck_plugin.relations.per_run import PerRun
from traincheck_plugin.relations.role_proposer import ScheduleProposer

IN_A_ROW = 4
"""Metrics each of which is lower than all before, until that is no coincidence."""

FALLEN, FALLEN_FAR = 0.8, 0.5
"""What is left of the first metric by then; and where one less in a row is enough."""

KNOWN_IN_A_ROW = 2
"""Metrics in a row that go the way of the reference, until that is no coincidence."""

MIN_METRICS = 3
"""So many show which way a metric goes."""

MODES = ("min", "max")


class ScheduleMetricRelation(Relation):
    """A metric that a schedule wants to be high does not fall and fall.

    ``forall optimizer steps after a call of a schedule in mode max: not (its metric is the lowest
    so far, as were the `IN_A_ROW` - 1 before it, and at most `FALLEN` of the first)``, or one less
    and `FALLEN_FAR`. With the mode of the reference: a metric that goes the way that it went there,
    the last `KNOWN_IN_A_ROW` times, is given to a schedule of that mode.

    Catches a ``ReduceLROnPlateau`` in mode max for a loss, which reduces the learning rate although
    the loss falls. Cannot see, without a reference, one in mode min for an accuracy: a loss that
    rises may be that of a model that overfits.
    """

    name = "ScheduleMetricRelation"
    takes_stretches = True

    def proposer(self) -> Proposer:
        return _Proposer()

    def monitor(self, params: tuple[Param, ...]) -> Monitor:
        return _Monitor(*_parts(params))

    def describe(self, params: tuple[Param, ...]) -> str:
        step, moved, mode = _parts(params)
        where, name = short(step.api_full_name), short(moved.api_full_name)
        if mode is None:
            return f"at {where}, {name} in mode max was not given a metric that falls and falls"
        return f"at {where}, {name} is in mode {mode}, and its metric {_WAYS[mode]}"

    def needs(self, params: tuple[Param, ...]) -> Plan:
        return api_plan(*_parts(params)[:2])

    def severity(self, params: tuple[Param, ...]) -> Severity:
        return "warning"


_WAYS = {"min": "falls", "max": "rises"}


def _parts(params: tuple[Param, ...]) -> tuple[APIParam, APIParam, str | None]:
    """Return the APIs of a hypothesis, and the mode that it is about, if any.

    Raises:
        InvariantError: it is none of this relation.
    """
    name = ScheduleMetricRelation.name
    if len(params) == 2:
        return *pair(name, params, APIParam, APIParam), None
    step, moved, mode = three(name, params, APIParam, APIParam, ConstantParam)
    if mode.value not in MODES:
        raise InvariantError(f"{name} needs the mode min or max, got {mode.value!r}")
    return step, moved, str(mode.value)


class _Metric(NamedTuple):
    """What a schedule was given.

    Attributes:
        row: of the call.
        schedule: label of the scheduler.
        mode: min or max.
        value: of the metric.
    """

    row: int
    schedule: str
    mode: str
    value: float


def _metrics(window: Window, moved: str) -> Iterator[_Metric]:
    rows = completed(window, window.rows_of_name(moved))
    for row, code in zip(rows.tolist(), window.calls.outputs[rows].tolist(), strict=True):
        told = {item.path: str(item.value) for item in window.catalog.signature(code)}
        if told.get("mode") in MODES and "metric" in told:
            schedule = short(label(window, row))
            yield _Metric(row, schedule, told["mode"], float(told["metric"]))


@dataclass(slots=True)
class _Course:
    """How the metric of one schedule went.

    Attributes:
        first, lowest, highest, last: metrics.
        num_lower, num_higher: in a row that were lower, or higher, than all before.
        number: of metrics.
    """

    first: float
    lowest: float
    highest: float
    last: float
    num_lower: int = 0
    num_higher: int = 0
    number: int = 1

    def goes_on(self, value: float) -> None:
        """Take the next metric."""
        self.num_lower = self.num_lower + 1 if value < self.lowest else 0
        self.num_higher = self.num_higher + 1 if value > self.highest else 0
        self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
        self.last = value
        self.number += 1

    @property
    def falls(self) -> bool:
        """Whether no metric that is to be high does so."""
        return any(
            self.num_lower >= number and 0 <= self.last <= left * self.first
            for number, left in ((IN_A_ROW, FALLEN), (IN_A_ROW - 1, FALLEN_FAR))
        )

    def gets_better(self, mode: str) -> bool:
        """Return whether the last metric is better than the first of enough."""
        better = self.last < self.first if mode == "min" else self.last > self.first
        return self.number >= MIN_METRICS and better


class _Courses:
    """Follows the metrics of all schedules of a run."""

    def __init__(self) -> None:
        self._courses: dict[str, _Course] = {}

    def after(self, metric: _Metric) -> _Course:
        """Return the course of a schedule with its next metric."""
        value = metric.value
        course = self._courses.get(metric.schedule)
        if course is None:
            course = self._courses[metric.schedule] = _Course(value, value, value, value)
        else:
            course.goes_on(value)
        return course


class _Monitor(Monitor):
    """Judges the metric of the last schedule that moved, at each step of an optimizer.

    Args:
        step, moved: the APIs.
        mode: of the reference; None where all pipelines are meant.
    """

    def __init__(self, step: APIParam, moved: APIParam, mode: str | None) -> None:
        self._step = step.api_full_name
        self._moved = moved.api_full_name
        self._mode = mode
        self._judged = PerRun(_Judged)

    def observe(self, window: Window) -> Examples:
        judged = self._judged.of(window.catalog)
        metrics = list(_metrics(window, self._moved))
        if not metrics and judged.last is None:
            return NO_EXAMPLES
        steps = completed(window, window.rows_of_name(self._step)).tolist()
        found: list[tuple[int, _Metric, bool, float]] = []
        for step in [*steps, len(window.calls)]:
            while metrics and metrics[0].row < step:
                metric = metrics.pop(0)
                course = judged.courses.after(metric)
                judged.last = metric, self._is_wrong(metric.mode, course), course.first
            if step < len(window.calls) and judged.last is not None:
                found.append((step, *judged.last))
        if not found:
            return NO_EXAMPLES
        return Examples.of_calls(
            window,
            np.array([row for row, *_ in found], np.int64),
            np.array([not is_wrong for *_, is_wrong, _ in found], np.bool_),
            lambda index: self._explain(found[index][1], found[index][3]),
        )

    def _is_wrong(self, mode: str, course: _Course) -> bool:
        if self._mode is None:
            return mode == "max" and course.falls
        number = course.num_lower if self._mode == "min" else course.num_higher
        return mode != self._mode and number >= KNOWN_IN_A_ROW

    def _explain(self, metric: _Metric, first: float) -> Explanation:
        way = "falls" if metric.value < first else "rises"
        known = "" if self._mode is None else f"; in the reference it is {self._mode}"
        return Explanation(
            message=f"the metric that {metric.schedule} is given {way}, from {first:.4g} to "
            f"{metric.value:.4g}, and its mode is {metric.mode}{known}",
            cause=Cause(
                fact="the mode of a schedule",
                subjects=(metric.schedule,),
                text=f"mode={metric.mode!r} does not fit the metric: what gets better counts for "
                "worse, and the learning rate is reduced all the same",
            ),
        )


class _Judged:
    """What is known of the schedules of a run.

    Attributes:
        courses: of their metrics.
        last: the last metric, whether its mode is wrong, and the first metric of its schedule.
    """

    def __init__(self) -> None:
        self.courses = _Courses()
        self.last: tuple[_Metric, bool, float] | None = None


class _Proposer(ScheduleProposer):
    """Proposes the rule where metrics are told, and their mode where all get better."""

    def __init__(self) -> None:
        super().__init__(ScheduleMetricRelation.name)
        self._courses: PerRun[dict[str, _Courses]] = PerRun(dict)
        self._seen: dict[str, dict[tuple[_Courses, str], tuple[str, _Course]]] = {}

    def observe(self, window: Window) -> None:
        super().observe(window)
        courses = self._courses.of(window.catalog)
        for name in [moved.api_full_name for moved in self._moves]:
            following = courses.setdefault(name, _Courses())
            for metric in _metrics(window, name):
                seen = self._seen.setdefault(name, {})
                seen[following, metric.schedule] = metric.mode, following.after(metric)

    def hypotheses(self) -> Iterable[Hypothesis]:
        name = ScheduleMetricRelation.name
        for both in self.pairs():
            seen = self._seen.get(both[1].api_full_name, {}).values()
            if not seen:
                continue
            yield Hypothesis(relation=name, params=both)
            modes = {mode for mode, _ in seen}
            if len(modes) == 1 and all(course.gets_better(mode) for mode, course in seen):
                params = (*both, ConstantParam(value=modes.pop()))
                yield Hypothesis(relation=name, params=params)
