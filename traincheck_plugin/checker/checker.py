"""The checker: feeds windows to the monitors of invariants and keeps what did not hold.

The same class checks a trace and a live run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from traincheck_plugin.catalog import Catalog, Contexts
from traincheck_plugin.checker.violation import Outcome, Violation
from traincheck_plugin.errors import InvariantError
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import Invariant
from traincheck_plugin.invariants.precondition import Precondition
from traincheck_plugin.invariants.similarity import SAME_PIPELINE, pipeline_of, similarity
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.base import Examples, Relation
from traincheck_plugin.relations.registry import relations as known_relations
from traincheck_plugin.vocabulary import CONTEXT_PROPERTIES, NONE, Bool, Int32, Int64

FEW = 32
"""Contexts that are looked at one by one: to sort so few takes longer."""


class Checker:
    """Checks the windows of one process, in order.

    Attributes:
        outcomes: one for each invariant, in the order given; up to date after every window, but
            for invariants of other pipelines, which are known as such from the first training
            step on.
        num_unobserved: invariants that need more than is observed.
        foreign: invariants of other pipelines, where none is of this one; empty before the first
            training step.
    """

    def __init__(
        self,
        invariants: Sequence[Invariant],
        *,
        script: str = "",
        plan: Plan | None = None,
        relations: Mapping[str, Relation] | None = None,
        is_across_ranks: bool = False,
    ) -> None:
        """Prepare a monitor for each invariant.

        Args:
            invariants: what to check.
            script: file name of the entry script, part of what makes a pipeline recognisable.
            plan: what is observed; everything when None. An invariant that needs more is not
                checked, since what was left out would be taken for what did not happen.
            relations: by name; those of the registry when None.
            is_across_ranks: whether the windows are those of all ranks together. Only invariants
                of relations that take such windows are checked then, and else only the others.

        Raises:
            InvariantError: an invariant names an unknown relation or has unfit parameters.
        """
        self._script = script
        known = known_relations() if relations is None else relations
        met: dict[Precondition, _Met] = {}
        watches = [_Watch(invariant, known, plan or Plan.full(), met) for invariant in invariants]
        self.outcomes = [watch.outcome for watch in watches]
        self.num_unobserved = sum(watch.closed for watch in watches)
        self._watches = [
            watch
            for watch in watches
            if not watch.closed and watch.relation.is_across_ranks == is_across_ranks
        ]
        self.foreign: tuple[Invariant, ...] = ()
        self._scoped = False
        self._catalog: Catalog | None = None
        self._is_whole = True

    def observe(self, window: Window) -> None:
        """Check a window, or stretch; where a relation fails, its invariant has an error."""
        self._catalog = window.catalog
        self._is_whole &= window.observed
        for watch in self._watches:
            watch.observe(window)
        if not self._scoped and len(window.rows_of_role("step")):
            self._leave_other_pipelines(window.catalog, window)

    def finish(self, *, is_success: bool = False) -> None:
        """End the run.

        Args:
            is_success: whether the run did all that it was meant to do; what it never did is
                judged only then.
        """
        if self._catalog is None:
            return
        if is_success and self._is_whole:
            for watch in self._watches:
                watch.finish(self._catalog)
        if not self._scoped:
            self._leave_other_pipelines(self._catalog)

    def _leave_other_pipelines(self, catalog: Catalog, window: Window | None = None) -> None:
        self._scoped = True
        here = pipeline_of(catalog, self._script, window)
        of_pipelines = [w for w in self._watches if w.outcome.invariant.scope == "pipeline"]
        foreign = [
            watch
            for watch in of_pipelines
            if not any(
                similarity(here, other) >= SAME_PIPELINE
                for other in watch.outcome.invariant.pipelines
            )
        ]
        for watch in foreign:
            watch.outcome.num_triggered = 0
            watch.outcome.violations.clear()
            watch.outcome.error = ""
            watch.closed = True
        if len(foreign) == len(of_pipelines):
            # Where some are of this pipeline, others may well be of another one.
            self.foreign = tuple(watch.outcome.invariant for watch in foreign)
        self._watches = [watch for watch in self._watches if not watch.closed]


class _Met:
    """Tells of contexts, by their codes, whether they meet a precondition.

    What it depends on is looked at, and not the context as a whole: every step has new ones.
    """

    def __init__(self, precondition: Precondition) -> None:
        self._precondition = precondition
        self._properties = precondition.properties
        # What is no property is one of the annotations.
        known = [name for name in self._properties if name in CONTEXT_PROPERTIES]
        others = len(known) < len(self._properties)
        self._names = [*known, *(["annotations"] if others else [])]
        self._by_value: dict[tuple[object, ...], bool] = {}
        self._by_code: Bool = np.empty(64, np.bool_)
        self._num_known = 0

    def of(self, codes: Int32, contexts: Contexts) -> Bool:
        """Return a value for each of *codes*."""
        start = self._num_known
        if start < len(contexts):
            new = self._new(start, contexts)
            self._num_known = stop = start + len(new)
            if stop > len(self._by_code):
                # By half as much again: every step has new contexts.
                self._by_code = np.resize(self._by_code, max(stop, 3 * len(self._by_code) // 2))
            self._by_code[start:stop] = new
        met: Bool = self._by_code[codes]
        return met

    def _new(self, start: int, contexts: Contexts) -> Bool:
        if not self._properties:
            return np.full(len(contexts) - start, self._precondition.holds(), np.bool_)
        columns = [contexts.column(name)[start:] for name in self._names]
        if len(columns[0]) <= FEW:
            return np.array(self._by_values(columns, range(start, len(contexts)), contexts))
        # Many contexts are alike in what it depends on.
        key = np.zeros(len(columns[0]), np.int64)
        for column in columns:
            low = int(column.min())
            key = np.unique(
                key * (int(column.max()) - low + 1) + column - low, return_inverse=True
            )[1]
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        codes = (first + start).tolist()
        found = self._by_values([column[first] for column in columns], codes, contexts)
        return np.array(found, np.bool_)[which]

    def _by_values(
        self, columns: Sequence[Int64], codes: Iterable[int], contexts: Contexts
    ) -> list[bool]:
        found = []
        values = zip(*(column.tolist() for column in columns), strict=True)
        for code, key in zip(codes, values, strict=True):
            met = self._by_value.get(key)
            if met is None:
                met = self._by_value[key] = self._precondition.holds(contexts[code])
            found.append(met)
        return found


class _Watch:
    """One invariant with its monitor, on one rank."""

    def __init__(
        self,
        invariant: Invariant,
        known: Mapping[str, Relation],
        plan: Plan,
        met: dict[Precondition, _Met],
    ) -> None:
        if invariant.relation not in known:
            raise InvariantError(
                f"unknown relation {invariant.relation!r}; "
                f"the relations are {', '.join(sorted(known))}"
            )
        self.outcome = Outcome(invariant=invariant)
        self.relation = relation = known[invariant.relation]
        self._monitor = relation.monitor(invariant.params)
        self.closed = not plan.covers(relation.needs(invariant.params))
        self._violation: Violation | None = None
        precondition = invariant.precondition
        self._met = met.setdefault(precondition, _Met(precondition))

    def observe(self, window: Window) -> None:
        for part in self.relation.windows(window):
            self._take(part.catalog, partial(self._monitor.observe, part))

    def finish(self, catalog: Catalog) -> None:
        self._take(catalog, self._monitor.finish)

    def _take(self, catalog: Catalog, label: Callable[[], Examples]) -> None:
        if self.closed:
            return
        try:
            examples = label()
            if len(examples):
                self._judge(catalog, examples)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not read as healthy
            self.outcome.error = f"checker error: {type(error).__name__}: {error}"
            self.closed = True

    def _judge(self, catalog: Catalog, examples: Examples) -> None:
        contexts = catalog.contexts
        met = self._met.of(examples.context, contexts)
        self.outcome.num_triggered += int(np.count_nonzero(met))
        if examples.holds.all():
            return
        failed = np.flatnonzero(met & ~examples.holds)
        if not len(failed):
            return
        last = contexts[int(examples.context[failed[-1]])]
        if self._violation is None:
            self._violation = self._violate(catalog, examples, int(failed[0]))
            self.outcome.violations.append(self._violation)
            self._violation.num_occurrences = 0
        self._violation.num_occurrences += len(failed)
        self._violation.last_step = last.step

    def _violate(self, catalog: Catalog, examples: Examples, row: int) -> Violation:
        explanation = examples.explain(row)
        context = catalog.contexts[int(examples.context[row])]
        source = int(examples.source[row])
        return Violation(
            invariant=self.outcome.invariant,
            message=explanation.message,
            cause=explanation.cause,
            step=context.step,
            epoch=context.epoch,
            stage=context.stage,
            rank=context.rank,
            source=catalog.sources[source] if source != NONE else "",
            sequence=int(examples.sequence[row]),
            time_ns=int(examples.time_ns[row]),
            last_step=context.step,
        )
