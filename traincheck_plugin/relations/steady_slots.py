"""Labels whether steps find the state of their optimizer as the last one left it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import NONE, Array, Catalog, Int32, Window
from traincheck_plugin.invariants.model import VarTypeParam
from traincheck_plugin.relations.base import Cause, Explanation
from traincheck_plugin.relations.between_steps import SteadyMonitor, Step, class_of
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD
from traincheck_plugin.relations.naming import short


@dataclass(slots=True)
class _Left:
    """The slots of an optimizer as its last step left them."""

    codes: Int32
    data: Array


class SlotMonitor(SteadyMonitor):
    """Compares the state of an optimizer with what it was when its step last ended."""

    LOAD = OPTIMIZER_LOAD

    def __init__(self, rule: VarTypeParam) -> None:
        super().__init__(rule)
        # By code of the optimizer, in the order of their last steps.
        self._left: dict[int, _Left] = {}
        self._met: set[int] = set()

    def _forget(self) -> None:
        self._left.clear()

    def _judge(self, window: Window, step: Step) -> bool | Explanation | None:
        optimizer = int(window.calls.object[step.row])
        left = self._left.pop(optimizer, None)
        is_new = left is None and optimizer not in self._met
        self._met.add(optimizer)
        if is_new and self._goes_across:
            left = self._predecessor(window, step, optimizer)
        result = None if left is None else self._compare(window, step, left, is_new=is_new)
        self._loads = [load for load in self._loads if load.subject not in (optimizer, NONE)]
        end = step.slots_end
        if end is not None:
            self._left[optimizer] = _Left(end.variables, end.columns["data"])
        return result

    def _predecessor(self, window: Window, step: Step, optimizer: int) -> _Left | None:
        """Return what the optimizer left whose place a new one takes: of its class, and gone."""
        objects = window.catalog.objects
        alive = set(np.unique(step.begin.columns["optimizer"]).tolist())
        for old in reversed(list(self._left)):
            if old not in alive and class_of(objects[old]) == class_of(objects[optimizer]):
                return self._left.pop(old)
        return None

    def _compare(
        self, window: Window, step: Step, left: _Left, *, is_new: bool
    ) -> bool | Explanation | None:
        now = step.slots_begin
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
            if load.subject in (int(window.calls.object[step.row]), NONE)
        }
        was_loaded = bool(outcomes - {"none"})
        differing = [slot for slot in before if slot in found and found[slot] != before[slot]]
        others = _others(before)
        exchanged = [slot for slot in differing if found[slot] in others[_kind(slot)]]
        name = short(window.catalog.apis[int(window.calls.api[step.row])].name)
        owner = short(window.catalog.objects[int(window.calls.object[step.row])])
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
            text = self._why_new(what) if is_new else f"{what}: it was cleared between two steps"
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
