"""Labels whether steps find the parameters as the last one left them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from traincheck_plugin.events import NONE, Array, Bool, Catalog, Frame, Int32, Int64, Window
from traincheck_plugin.invariants.model import VarTypeParam
from traincheck_plugin.relations.base import Cause, Explanation
from traincheck_plugin.relations.between_steps import FROZEN, SteadyMonitor, Step, class_of
from traincheck_plugin.relations.loads import MODULE_LOAD
from traincheck_plugin.relations.naming import describe_variables, short


class ParameterMonitor(SteadyMonitor):
    """Compares parameters with what they were when a step last ended."""

    LOAD = MODULE_LOAD

    def __init__(self, rule: VarTypeParam) -> None:
        super().__init__(rule)
        self._is_frozen = rule.where[: len(FROZEN)] == FROZEN
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

    def _judge(self, window: Window, step: Step) -> bool | Explanation | None:
        self._grow(len(window.catalog.variables))
        begin = step.begin
        codes, data, holders = begin.variables, begin.columns["data"], begin.columns["optimizer"]
        self._meet(window.catalog, codes, holders)
        dtype = begin.columns.get("dtype", np.zeros(len(codes), np.int32))
        same = data == self._left[codes]
        came = np.zeros(len(codes), np.bool_)
        if any(load.outcome != "none" for load in self._loads):
            # From elsewhere, an earlier checkpoint say: not for us to judge.
            came = self._known[codes] & ~same
            self._accept(codes[came], data[came], dtype[came])
        converted = self._dtype[codes] != dtype
        subject = self._known[codes] & ~came & ~converted
        if self._is_frozen:
            subject &= ~begin.columns["requires_grad"] & begin.columns["in_model"]
        else:
            subject &= holders == window.calls.object[step.row]
        if not self._goes_across:
            subject &= ~self._is_new[codes]
        result = self._result(window, step, subject, same)
        seen = subject | converted | ~self._known[codes]
        self._accept(codes[seen], data[seen], dtype[seen])
        self._loads.clear()
        self._leave(window, step, dtype)
        return result

    def _result(
        self, window: Window, step: Step, subject: Bool, same: Bool
    ) -> bool | Explanation | None:
        if not subject.any():
            return None
        codes = step.begin.variables
        every = self._rule.quantifier == "every"
        if bool(same[subject].all() if every else same[subject].any()):
            self.num_continued += int(self._is_new[codes[subject]].any())
            return True
        return self._explanation(window, step, subject, subject & ~same)

    def _accept(self, codes: Int32, data: Array, dtype: Array) -> None:
        self._left[codes] = data
        self._known[codes] = True
        self._is_new[codes] = False
        self._dtype[codes] = dtype

    def _leave(self, window: Window, step: Step, dtype: Array) -> None:
        """Note what the step leaves: of what it holds, and of what it changed besides."""
        end = step.end
        self._owners.trained(
            step.begin.variables[step.begin.columns["optimizer"] != NONE], window.catalog
        )
        if end is None or not np.array_equal(end.variables, step.begin.variables):
            self._known[step.begin.variables] = False
            return
        data = end.columns["data"]
        moved = data != step.begin.columns["data"]
        codes = end.variables
        self._is_new[codes[step.begin.columns["optimizer"] == window.calls.object[step.row]]] = (
            False
        )
        self._accept(codes[moved], data[moved], dtype[moved])

    def _meet(self, catalog: Catalog, codes: Int32, holders: Array) -> None:
        """Let the variables of new objects go on from those of earlier ones."""
        if self._known[codes].all():
            return
        for new, old in self._owners.successions(catalog, codes, holders):
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

    def _explanation(self, window: Window, step: Step, subject: Bool, failing: Bool) -> Explanation:
        catalog = window.catalog
        codes = step.begin.variables[failing]
        names = [catalog.variables[int(code)] for code in codes]
        labels = tuple(sorted(v.label for v in names))
        count = f"{len(names)} of {int(subject.sum())}{' frozen' if self._is_frozen else ''}"
        name = short(catalog.apis[int(window.calls.api[step.row])].name)
        if self._is_new[codes].any():
            owner = names[0].owner
            return Explanation(
                message=f"{count} parameters of the new {short(owner)} are not those that the last "
                f"step left, when {name} runs",
                cause=Cause(
                    fact="not loaded",
                    subjects=labels,
                    text=self._why_new(f"{describe_variables(names)} began anew"),
                ),
            )
        text = f"{describe_variables(names)} changed after the last step and before this one"
        lender = self._lender(step.begin, failing)
        if lender is None:
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

    def _lender(self, frame: Frame, failing: Bool) -> int | None:
        """Return a variable that was left with what one of the failing ones holds now."""
        known = np.flatnonzero(self._known)
        lenders = known[np.isin(self._left[known], frame.columns["data"][failing])]
        return int(lenders[0]) if len(lenders) else None


class _Owners:
    """Which objects took the place of which: the same class and names, after those had trained."""

    def __init__(self) -> None:
        self._scanned = 0
        self._tables: dict[str, dict[tuple[str, tuple[int, ...]], int]] = {}
        self._owner_of: list[str] = []
        self._met: set[str] = set()
        self._trained: list[str] = []

    def forget(self) -> None:
        """Let nothing go on from what trained so far."""
        self._trained.clear()

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
