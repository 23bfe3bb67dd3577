"""Labels whether steps find the parameters as the last one left them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VarTypeParam
from traincheck_plugin.relations.base import Cause, Explanation, no_explanation
from traincheck_plugin.relations.between_steps import (
    FROZEN,
    HELD,
    Judged,
    SteadyMonitor,
    Steps,
    class_of,
)
from traincheck_plugin.relations.frames import stacks_of
from traincheck_plugin.relations.loads import MODULE_LOAD, Load
from traincheck_plugin.relations.moments import Moments
from traincheck_plugin.relations.naming import describe_variables, short
from traincheck_plugin.vocabulary import NONE, Array, Bool, Int32, Int64


@dataclass(frozen=True, slots=True)
class _Run:
    """Steps in a row that show the same variables.

    Attributes:
        begin: what they begin with.
        data, dtype: of the variables then, a row for each step.
        end: the data that they leave; None where they do not show that.
        moved: which of it they changed.
        is_steady: whether each but the first finds what the one before it left.
        is_converted: whether some dtype differs from one of them to the next.
        trained: the variables that optimizers hold, where they are not those of the step before.
    """

    begin: Moments
    data: Array
    dtype: Array
    end: Array | None
    moved: Bool
    is_steady: bool
    is_converted: bool
    trained: Sequence[Int32]

    @classmethod
    def of(cls, window: Window, steps: Steps, start: int, stop: int) -> _Run:
        """Return some steps whose frames are of the same stacks."""
        key = cls, start, stop
        found: _Run | None = window.cache.get(key)
        if found is None:
            found = window.cache[key] = cls._of(window, steps, start, stop)
        return found

    @classmethod
    def _of(cls, window: Window, steps: Steps, start: int, stop: int) -> _Run:
        begin = Moments.of(window, steps.begin[start:stop])
        data, held = begin.column("data"), begin.column("optimizer") != NONE
        dtype = begin.column("dtype") if begin.has("dtype") else np.zeros(data.shape, np.int32)
        end, moved, is_steady = None, np.zeros(data.shape, np.bool_), False
        if steps.end[start] != NONE:
            left = Moments.of(window, steps.end[start:stop])
            if left.variables is begin.variables or np.array_equal(left.variables, begin.variables):
                end = left.column("data")
                moved = end != data
                is_steady = np.array_equal(data[1:], end[:-1])
        is_other = [True, *(held[1:] != held[:-1]).any(axis=1).tolist()]
        return cls(
            begin=begin,
            data=data,
            dtype=dtype,
            end=end,
            moved=moved,
            is_steady=is_steady,
            is_converted=not np.array_equal(dtype[1:], dtype[:-1]),
            trained=[begin.variables[row] for row in held[is_other]],
        )


def _runs(window: Window, steps: Steps) -> list[tuple[int, int]]:
    """Return where steps in a row show the same variables, at their begins and at their ends."""
    found: list[tuple[int, int]] | None = window.cache.get(_runs)
    if found is None:
        begin, end = stacks_of(window, steps.begin), stacks_of(window, steps.end)
        is_last = (begin[1:] != begin[:-1]) | (end[1:] != end[:-1])
        bounds = [0, *(np.flatnonzero(is_last) + 1).tolist(), len(steps)]
        found = window.cache[_runs] = []
        for start, stop in pairwise(bounds):
            size = max(stop - start, 1)
            if size > 1 and _Run.of(window, steps, start, start + 1).end is None:
                # What a step does not show at its end is not known when the next one begins.
                size = 1
            found += [(first, first + size) for first in range(start, stop, size)]
    return found


class ParameterMonitor(SteadyMonitor):
    """Compares parameters with what they were when a step last ended."""

    LOAD = MODULE_LOAD

    def __init__(self, rule: VarTypeParam) -> None:
        super().__init__(rule)
        self._where = FROZEN if rule.where[: len(FROZEN)] == FROZEN else HELD
        self._owners = _Owners()
        # By code of the variable: what it is expected to be, whether that is known, and whether
        # it was left so by a variable of an earlier object.
        self._left = np.zeros(0, np.uint64)
        self._known = np.zeros(0, np.bool_)
        self._is_new = np.zeros(0, np.bool_)
        self._dtype = np.zeros(0, np.int32)

    def _forget(self) -> None:
        self._known[:] = False
        self._is_new[:] = False
        self._owners.forget()

    def _judge(self, window: Window, steps: Steps, start: int, stop: int) -> list[Judged]:
        self._grow(len(window.catalog.variables))
        found = []
        for first, last in _runs(window, steps):
            first, last = max(first, start), min(last, stop)
            if first >= last:
                continue
            run = _Run.of(window, steps, first, last)
            is_known = self._known[run.begin.variables]
            if not is_known.all():
                self._meet(window.catalog, run.begin)
                is_known = self._known[run.begin.variables]
            judged = self._compare(window, run, steps.rows[first:last], is_known)
            if judged is not None:
                found.append(judged)
            self._loads = []
            for codes in run.trained:
                self._owners.trained(codes, window.catalog)
        return found

    def _compare(self, window: Window, run: _Run, rows: Int64, is_known: Bool) -> Judged | None:
        """Label the steps of a run, and note what they leave."""
        codes = run.begin.variables
        is_same = run.data[0] == self._left[codes]
        # Not to be judged in the first step: what is not known, and what came from elsewhere, an
        # earlier checkpoint say.
        is_fresh = ~is_known
        num_loads = sum(load.outcome != "none" for load in self._loads)
        if self._judges_loads:
            held = run.begin.select(HELD)
            if num_loads > 1 and held is not None and (is_known & is_same)[held[0]].all():
                self.num_continued += 1
        elif num_loads:
            is_fresh |= ~is_same
        if (
            run.end is None
            or run.is_converted
            or not (run.is_steady and is_same.all())
            or is_fresh.any()
            or self._is_new[codes].any()
            or not np.array_equal(self._dtype[codes], run.dtype[0])
        ):
            return self._follow(window, run, rows, is_fresh)
        # Every step finds what the one before it left.
        self._left[codes] = run.end[-1]
        rows = rows[run.begin.has_some(self._where)]
        return Judged(rows, np.ones(len(rows), np.bool_), no_explanation) if len(rows) else None

    def _follow(self, window: Window, run: _Run, rows: Int64, is_fresh: Bool) -> Judged | None:
        """Label steps of which some find what none has left, or what is not to be judged."""
        codes, data = run.begin.variables, run.data
        subject, held = run.begin.select(self._where), run.begin.select(HELD)
        if subject is None or held is None:
            return None
        is_converted = run.dtype != np.concatenate([self._dtype[codes][None], run.dtype[:-1]])
        subject = subject & ~is_converted
        subject[0] &= ~is_fresh
        # The next step goes by what one judges, and by what it changes, whoever holds that.
        is_seen = is_converted | run.moved
        is_seen[0] |= is_fresh
        is_met = is_seen if run.end is None else is_seen | held
        if self._goes_across:
            is_met = is_met | subject
        is_new = self._is_new[codes] & ~_until(is_met)
        if not self._goes_across:
            subject &= ~is_new[:-1]
        is_seen |= subject
        left = _latest(is_seen, self._left[codes], data if run.end is None else run.end)
        is_same = data == left[:-1]
        failing = subject & ~is_same
        holds = (
            ~failing.any(axis=1)
            if self._rule.quantifier == "every"
            else (subject & is_same).any(axis=1)
        )
        judged = np.flatnonzero(subject.any(axis=1))
        holds = holds[judged]
        self.num_continued += int((is_new[:-1] & subject)[judged[holds]].any(axis=1).sum())
        then, loads = (self._left.copy(), self._known.copy()), self._loads

        def explain(index: int) -> Explanation:
            step = int(judged[index])
            values, is_known = then[0].copy(), then[1].copy()
            values[codes] = np.where(is_fresh, data[0], left[0]) if step == 0 else left[step]
            is_known[codes] |= step > 0
            now = data[step][failing[step]]
            return self._explanation(
                window,
                int(rows[step]),
                codes[failing[step]],
                int(subject[step].sum()),
                is_new=bool(is_new[step][failing[step]].any()),
                loads=loads if step == 0 else (),
                lender=next(iter(np.flatnonzero(is_known & np.isin(values, now)).tolist()), None),
            )

        self._left[codes] = left[-1]
        self._known[codes] = run.end is not None
        self._is_new[codes] = is_new[-1]
        self._dtype[codes] = run.dtype[-1]
        return Judged(rows[judged], holds, explain) if len(judged) else None

    def _meet(self, catalog: Catalog, begin: Moments) -> None:
        """Let the variables of new objects go on from those of earlier ones."""
        holders = begin.column("optimizer")[0]
        for new, old in self._owners.successions(catalog, begin.variables, holders):
            known = self._known[old]
            new, old = new[known], old[known]
            self._left[new] = self._left[old]
            self._dtype[new] = self._dtype[old]
            self._known[new] = self._is_new[new] = True

    def _grow(self, size: int) -> None:
        missing = size - len(self._known)
        if missing > 0:
            self._left = np.append(self._left, np.zeros(missing, np.uint64))
            self._known = np.append(self._known, np.zeros(missing, np.bool_))
            self._is_new = np.append(self._is_new, np.zeros(missing, np.bool_))
            self._dtype = np.append(self._dtype, np.zeros(missing, np.int32))

    def _explanation(
        self,
        window: Window,
        row: int,
        failing: Int32,
        total: int,
        *,
        is_new: bool,
        loads: Sequence[Load],
        lender: int | None,
    ) -> Explanation:
        """Say why a step does not go on.

        Args:
            window: where it is.
            row: of its call.
            failing: the variables that are others than the last step left.
            total: how many were looked at.
            is_new: whether an object of theirs is new.
            loads: what was loaded before the step.
            lender: a variable that was left with what one of the failing ones holds now.
        """
        catalog = window.catalog
        names = [catalog.variables[int(code)] for code in failing]
        labels = tuple(sorted(v.label for v in names))
        count = f"{len(names)} of {total}{' frozen' if self._where == FROZEN else ''}"
        name = short(catalog.apis[int(window.calls.api[row])].name)
        if is_new:
            owner = names[0].owner
            return Explanation(
                message=f"{count} parameters of the new {short(owner)} are not those that the last "
                f"step left, when {name} runs",
                cause=Cause(
                    fact="not loaded",
                    subjects=labels,
                    text=self._why_new(f"{describe_variables(names)} began anew", loads),
                ),
            )
        text = f"{describe_variables(names)} changed after the last step and before this one"
        if loads:
            text += f": {loads[-1].text} gave them other values, and nothing gave them back"
        elif lender is None:
            text += ", outside any optimizer step"
        else:
            text += (
                f": they hold what `{catalog.variables[lender].label}` of another model held, "
                "swapped and not swapped back"
            )
        return Explanation(
            message=f"{count} parameters were changed between two steps, before {name}",
            cause=Cause(fact="changed outside steps", subjects=labels, text=text),
        )


def _until(mask: Bool) -> Bool:
    """Return whether each column was set in a row above: of each row, and of all."""
    first = np.zeros((1, mask.shape[1]), np.bool_)
    found: Bool = np.logical_or.accumulate(np.concatenate([first, mask]), axis=0)
    return found


def _latest(mask: Bool, before: Array, values: Array) -> Array:
    """Return of each row, and of all, the last of the values above that the mask selects."""
    number = np.zeros((len(mask) + 1, mask.shape[1]), np.int64)
    number[1:] = mask * np.arange(1, len(mask) + 1)[:, None]
    np.maximum.accumulate(number, axis=0, out=number)
    return np.take_along_axis(np.concatenate([before[None], values]), number, axis=0)


class _Owners:
    """Which objects took the place of which: the same class and names, after those had trained."""

    def __init__(self) -> None:
        self._scanned = 0
        self._tables: dict[str, dict[tuple[str, tuple[int, ...]], int]] = {}
        self._owner_of: list[str] = []
        self._met: set[str] = set()
        self._trained: list[str] = []
        self._last: Int32 | None = None

    def forget(self) -> None:
        """Let nothing go on from what trained so far."""
        self._trained.clear()
        self._last = None

    def _update(self, catalog: Catalog) -> None:
        for code in range(self._scanned, len(catalog.variables)):
            variable = catalog.variables[code]
            self._owner_of.append(variable.owner)
            if variable.kind == "parameter":
                table = self._tables.setdefault(variable.owner, {})
                table[variable.name, variable.shape] = code
        self._scanned = len(catalog.variables)

    def trained(self, codes: Int32, catalog: Catalog) -> None:
        """Note that a step left these variables, which optimizers hold."""
        if self._last is not None and np.array_equal(codes, self._last):
            return
        self._last = codes
        self._update(catalog)
        owners = dict.fromkeys(self._owner_of[code] for code in codes.tolist())
        if self._trained[-len(owners) :] != list(owners):
            self._trained = [o for o in self._trained if o not in owners] + list(owners)

    def successions(
        self, catalog: Catalog, codes: Int32, holders: Array
    ) -> Iterator[tuple[Int64, Int64]]:
        """Yield the variables of each object met for the first time, and whose place they take."""
        self._update(catalog)
        present = dict.fromkeys(self._owner_of[code] for code in codes.tolist())
        held = {self._owner_of[code] for code in codes[holders != NONE].tolist()}
        for owner in present:
            if owner in self._met:
                continue
            self._met.add(owner)
            old = self._predecessor(owner, held)
            if old is None:
                continue
            before = self._tables[old]
            pairs = [
                (code, before[key]) for key, code in self._tables[owner].items() if key in before
            ]
            self._trained.remove(old)
            self._last = None
            found = np.array(pairs, np.int64)
            yield found[:, 0], found[:, 1]

    def _predecessor(self, owner: str, held: set[str]) -> str | None:
        names = set(self._tables[owner])
        for old in reversed(self._trained):
            is_over = old != owner and old not in held
            if is_over and class_of(old) == class_of(owner):
                common = names & set(self._tables[old])
                if 2 * len(common) > len(names):
                    return old
        return None
