"""What was loaded into modules and optimizers, read off the recorded calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import Frame, Window
from traincheck_plugin.relations.naming import place, short
from traincheck_plugin.vocabulary import NONE, Phase

MODULE_LOAD = "torch.nn.Module.load_state_dict"
OPTIMIZER_LOAD = "torch.optim.Optimizer.load_state_dict"

OUTCOME = "loaded"
"""What the result of a load is recorded as."""

OWN, UNCHANGED, LOADED = "own", "unchanged", "loaded"
"""What is told besides, where all that was loaded was the memory of the module itself: kept since
an earlier training step, or of this one and `UNCHANGED`, or with something `LOADED` since."""

UNTIED = "untied"
"""What is told besides, where tensors that are one in what is loaded are two in the module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One call of `load_state_dict`.

    Attributes:
        row: of the call.
        subject: code of the object that was loaded into, or `NONE`.
        outcome: how much of it was loaded: ``all``, ``some`` or ``none``; "" where unknown.
        text: the call, with its place in the source.
    """

    row: int
    subject: int
    outcome: str
    text: str


def resumes(window: Window, load: Load) -> bool:
    """Return whether a load gave an optimizer a state that it had not.

    Some optimizers have one from the beginning, and what prepares them for a device loads it anew.
    """
    if load.outcome == "none":
        return False
    part, row = window.at(load.row)
    slots: dict[Phase, Frame] = {
        frame.phase: frame
        for frame in part.frames_of_call.get(int(part.calls.call[row]), ())
        if part.kind(frame) == "slot" and "data" in frame.columns
    }
    if slots.keys() != {"begin", "end"}:
        return True
    begin, end = slots["begin"], slots["end"]
    is_same = np.array_equal(begin.variables, end.variables) and np.array_equal(
        begin.columns["data"], end.columns["data"]
    )
    return not is_same


def outcome_of(window: Window, row: int) -> str:
    """Return how much a call of `load_state_dict` loaded, "" where that is not recorded."""
    for item in window.catalog.signature(int(window.calls.outputs[row])):
        if item.path == OUTCOME and isinstance(item.value, str):
            return item.value
    return ""


def told_of(window: Window, row: int, fact: str) -> str:
    """Return what is told besides of a call of `load_state_dict`: how it came to *fact*, or ""."""
    items = window.catalog.signature(int(window.calls.outputs[row]))
    return next((str(item.value) for item in items if item.path == fact), "")


def loads_in(window: Window, name: str) -> list[Load]:
    """Return the calls of *name* in *window* that raised nothing, in order."""
    calls = window.calls
    return [
        Load(
            row=row,
            subject=int(calls.object[row]),
            outcome=outcome_of(window, row),
            text=f"{short(name)}{place(window, row)}",
        )
        for row in window.rows_of_name(name).tolist()
        if calls.exception[row] == NONE
    ]
