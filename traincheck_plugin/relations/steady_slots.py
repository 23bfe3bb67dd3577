"""Labels whether steps find the state of their optimizer as the last one left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import VarTypeParam
from traincheck_plugin.relations.base import Cause, Explanation
from traincheck_plugin.relations.between_steps import Judged, SteadyMonitor, Steps, class_of
from traincheck_plugin.relations.frames import compare
from traincheck_plugin.relations.lifecycle import previous
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD
from traincheck_plugin.relations.naming import short
from traincheck_plugin.vocabulary import NONE, Array, Int32


@dataclass(frozen=True, slots=True)
class _Left:
    """The slots of an optimizer as its last step left them."""

    codes: Int32
    data: Array


def _is_kept(window: Window, steps: Steps) -> list[bool]:
    """Return of which steps the slots are as the step before on the same optimizer left them."""
    found: list[bool] | None = window.cache.get(_is_kept)
    if found is None:
        last = previous(window.calls.object[steps.rows])
        left = np.where(last == NONE, NONE, steps.slots_end[last])
        is_same, differs = compare(window, left, steps.slots_begin, "data")
        found = window.cache[_is_kept] = (is_same & ~differs).tolist()
    return found


class SlotMonitor(SteadyMonitor):
    """Compares the state of an optimizer with what it was when its step last ended."""

    LOAD = OPTIMIZER_LOAD

    def __init__(self, rule: VarTypeParam) -> None:
        super().__init__(rule)
        # By code of the optimizer, in the order of their last steps. What a step of the window at
        # hand left is told by the position of its frame.
        self._left: dict[int, _Left | int] = {}
        self._met: set[int] = set()

    def _forget(self) -> None:
        self._left.clear()

    def _judge(self, window: Window, steps: Steps, start: int, stop: int) -> list[Judged]:
        is_kept, ends = _is_kept(window, steps), steps.slots_end.tolist()
        optimizers = window.calls.object[steps.rows].tolist()
        judged: list[int] = []
        results: list[bool | Explanation] = []
        for step in range(start, stop):
            optimizer = optimizers[step]
            left = self._left.pop(optimizer, None)
            result: bool | Explanation | None = None
            if isinstance(left, int) and is_kept[step]:
                result = True
            elif left is not None or optimizer not in self._met:
                self._met.add(optimizer)
                result = self._look(window, steps, step, left)
            if self._loads:
                self._loads = [o for o in self._loads if o.subject not in (optimizer, NONE)]
            if ends[step] != NONE:
                self._left[optimizer] = ends[step]
            if result is not None:
                judged.append(step)
                results.append(result)
        if not judged:
            return []
        holds = np.array([result is True for result in results], np.bool_)

        def explain(index: int) -> Explanation:
            result = results[index]
            if isinstance(result, Explanation):
                return result
            raise IndexError(index)

        return [Judged(steps.rows[judged], holds, explain)]

    def _leave(self, window: Window) -> None:
        for optimizer, left in self._left.items():
            self._left[optimizer] = _copied(window, left)

    def _look(
        self, window: Window, steps: Steps, step: int, left: _Left | int | None
    ) -> bool | Explanation | None:
        """Judge a step by what was left: by the one before it, or by that of another optimizer."""
        row, is_new = int(steps.rows[step]), left is None
        if left is None and self._goes_across:
            frame = window.frames[int(steps.begin[step])]
            left = self._predecessor(window, frame, int(window.calls.object[row]))
        if left is None:
            return None
        position = int(steps.slots_begin[step])
        now = None if position == NONE else window.frames[position]
        return self._compare(window, row, now, _copied(window, left), is_new=is_new)

    def _predecessor(self, window: Window, begin: Frame, optimizer: int) -> _Left | int | None:
        """Return what the optimizer left whose place a new one takes: of its class, and gone."""
        objects = window.catalog.objects
        alive = set(np.unique(begin.columns["optimizer"]).tolist())
        for old in reversed(list(self._left)):
            if old not in alive and class_of(objects[old]) == class_of(objects[optimizer]):
                return self._left.pop(old)
        return None

    def _compare(
        self, window: Window, row: int, now: Frame | None, left: _Left, *, is_new: bool
    ) -> bool | Explanation | None:
        if (
            now is not None
            and np.array_equal(now.variables, left.codes)
            and np.array_equal(now.columns["data"], left.data)
        ):
            return True
        before = _by_name(window.catalog, left.codes, left.data)
        found = {} if now is None else _by_name(window.catalog, now.variables, now.columns["data"])
        outcomes = {
            load.outcome
            for load in self._loads
            if load.subject in (int(window.calls.object[row]), NONE)
        }
        was_loaded = bool(outcomes - {"none"})
        differing = [slot for slot in before if slot in found and found[slot] != before[slot]]
        others = _others(before)
        exchanged = [slot for slot in differing if found[slot] in others[_kind(slot)]]
        name = short(window.catalog.apis[int(window.calls.api[row])].name)
        owner = short(window.catalog.objects[int(window.calls.object[row])])
        # A few may be alike by chance: all zeros, say.
        if was_loaded and 2 * len(exchanged) > len(differing):
            labels = _parameters(exchanged)
            shown = ", ".join(f"`{label}`" for label in labels[:3])
            return Explanation(
                message=f"{name} finds the state of {len(labels)} parameters under the names of "
                "others",
                cause=Cause(
                    fact="optimizer state of other parameters",
                    subjects=labels,
                    text=f"{self._loads[-1].text} gave {shown} the optimizer state of other "
                    "parameters: state is loaded in the order of the parameters, and that is not "
                    "the order in which it was saved",
                ),
            )
        if was_loaded:
            if not differing and any(slot in found for slot in before):
                self.num_continued += is_new
                return True
            return None
        # Without fewer slots, other names mean that the model is known by another path.
        missing = [slot for slot in before if slot not in found]
        lost = missing if len(found) < len(before) else []
        if lost and not is_new and (outcomes or not found):
            # It was put back to before its first step, as after a search for a learning rate, or
            # cleared as a whole.
            return None
        if not lost and not differing:
            if len(missing) == len(before):
                return None
            self.num_continued += is_new
            return True
        labels = _parameters([*lost, *differing])
        who = f"{len(labels)} parameters" if len(labels) > 3 else ", ".join(labels)
        if lost:
            what = f"the optimizer state of {who} begins anew"
            text = (
                self._why_new(f"{owner} is a new optimizer, and {what}", self._loads)
                if is_new
                else f"{what}: it was cleared between two steps"
            )
        else:
            text = f"the optimizer state of {who} changed between two steps"
        return Explanation(
            message=f"the state of {owner} is not that which the last step left, when {name} runs",
            cause=Cause(
                fact="optimizer state not loaded" if is_new else "optimizer state changed",
                subjects=labels,
                text=text,
            ),
        )


def _copied(window: Window, left: _Left | int) -> _Left:
    """Return what was left as something that does not keep the window."""
    if isinstance(left, _Left):
        return left
    frame = window.frames[left]
    return _Left(frame.variables, frame.columns["data"].copy())


_Slot = tuple[str, tuple[int, ...]]
"""Name and shape: what has another shape is something else."""


def _by_name(catalog: Catalog, codes: Int32, data: Array) -> dict[_Slot, int]:
    slots = [catalog.variables[code] for code in codes.tolist()]
    return {(v.name, v.shape): h for v, h in zip(slots, data.tolist(), strict=True)}


def _kind(slot: _Slot) -> str:
    """Return ``exp_avg`` for ``fc.weight.exp_avg``."""
    return slot[0].rpartition(".")[2]


def _others(before: dict[_Slot, int]) -> dict[str, set[int]]:
    """Return the values of slots by their kind."""
    values: dict[str, set[int]] = {}
    for slot, value in before.items():
        values.setdefault(_kind(slot), set()).add(value)
    return values


def _parameters(slots: Sequence[_Slot]) -> tuple[str, ...]:
    """Return the names of the parameters that slots belong to."""
    return tuple(sorted({name.rpartition(".")[0] for name, _ in slots}))
