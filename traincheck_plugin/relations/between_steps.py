"""Sees a run as training steps with what is loaded in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import VarTypeParam
from traincheck_plugin.relations.base import NO_EXAMPLES, Examples, Explanation, Monitor
from traincheck_plugin.relations.loads import MODULE_LOAD, Load, loads_in

HELD, FROZEN = (("held", True),), (("requires_grad", False), ("in_model", True))
SAME_OBJECT = ("same_object", True)
"""Says nothing of what a new model or optimizer begins with."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step, its frames of parameters and, where it has any, of slots."""

    row: int
    begin: Frame
    end: Frame | None
    slots_begin: Frame | None
    slots_end: Frame | None


def _events(window: Window, load_name: str) -> Iterator[Step | Load]:
    """Yield the steps of a window and the loads before, between and after them, in order."""
    apis = window.catalog.apis
    loads = loads_in(window, load_name)
    steps = []
    for code in window.api_codes:
        if apis[code].role == "step":
            for row in window.rows_of_api(code).tolist():
                step = _step(window, row)
                if step is not None:
                    steps.append(step)
    for step in sorted(steps, key=lambda step: step.begin.sequence):
        while loads and loads[0].sequence < step.begin.sequence:
            yield loads.pop(0)
        yield step
    yield from loads


def _step(window: Window, row: int) -> Step | None:
    frames: dict[tuple[str | None, str], Frame] = {}
    for frame in window.frames_of_call.get(int(window.calls.call[row]), ()):
        if "data" in frame.columns:
            frames[window.kind(frame), frame.phase] = frame
    begin = frames.get(("parameter", "begin"))
    if begin is None or "optimizer" not in begin.columns:
        return None
    return Step(
        row=row,
        begin=begin,
        end=frames.get(("parameter", "end")),
        slots_begin=frames.get(("slot", "begin")),
        slots_end=frames.get(("slot", "end")),
    )


class SteadyMonitor(Monitor):
    """What both monitors share: they see a run as steps with loads in between.

    Attributes:
        num_continued: steps at which new objects went on from where earlier ones had stopped.
    """

    LOAD: str

    def __init__(self, rule: VarTypeParam) -> None:
        self._rule = rule
        self._goes_across = SAME_OBJECT not in rule.where
        self._loads: list[Load] = []
        self.num_continued = 0

    def observe(self, window: Window) -> Examples:
        if not window.observed:
            self._forget()
            self._loads.clear()
            return NO_EXAMPLES
        rows: list[int] = []
        holds: list[bool] = []
        explanations: list[Explanation | None] = []
        for event in _events(window, self.LOAD):
            if isinstance(event, Load):
                self._loads.append(event)
                continue
            judged = self._judge(window, event)
            if judged is None:
                continue
            rows.append(event.row)
            holds.append(not isinstance(judged, Explanation))
            explanations.append(judged if isinstance(judged, Explanation) else None)
        if not rows:
            return NO_EXAMPLES

        def explain(index: int) -> Explanation:
            explanation = explanations[index]
            if explanation is None:
                raise IndexError(index)
            return explanation

        return Examples.of_calls(
            window, np.array(rows, np.int64), np.array(holds, np.bool_), explain
        )

    @abstractmethod
    def _judge(self, window: Window, step: Step) -> bool | Explanation | None:
        """Return True where *step* goes on, why not where it does not, None if it tells nothing."""

    @abstractmethod
    def _forget(self) -> None:
        """Forget what the last step left: steps were left out."""

    def _why_new(self, what: str) -> str:
        """Say of a new object why it does not go on: what was loaded into it, or not."""
        # What an optimizer without any state is given, as Accelerate does, is not meant as a load.
        loads = [load for load in self._loads if self.LOAD == MODULE_LOAD or load.outcome != "none"]
        if not loads:
            return f"{what}: no load_state_dict gave it anything"
        load = loads[-1]
        if load.outcome == "none":
            return f"{what}: {load.text} loaded nothing, no name in the checkpoint matched"
        return f"{what}: {load.text} did not load them"


def class_of(owner: str) -> str:
    """Return ``torch.optim.Adam`` for ``torch.optim.Adam#0``."""
    return owner.partition("#")[0]
