"""The losses that go backward: after which model, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, get_args

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import APIParam
from traincheck_plugin.relations.frames import is_backward
from traincheck_plugin.relations.lifecycle import completed
from traincheck_plugin.relations.loads import OPTIMIZER_LOAD, loads_in, resumes
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.vocabulary import NONE, Int64, Setting

BACKWARD = APIParam(api_full_name="torch.autograd.backward", role="backward")

FIRST = 100
"""Training steps, from the first loss after a class on, that are judged. A term that joins the loss
later may do so after the end of the reference."""

MIN_BACKWARDS = 10
"""So many show how a loss is computed."""

MAX_WAYS = 8
"""A loss that is computed in more ways depends on the data."""


class Loss(NamedTuple):
    """A loss that goes backward.

    Attributes:
        row: of the backward.
        step: the training step that it leads to.
        after: class of the last model that ran before; "" where none did.
        formula: how it is computed; "" where that is not known.
        settings: of the operations that compute it; "" where none is known.
        draws: where went what was drawn at random since the loss before; "" where nothing is known.
        cuts: functions that took the gradients from terms of it, or `NO_CUT`; "" where that is not
            known.
        layers: linear ones and convolutions in its graph, by their weights; `ENTRY` is before those
            to whose inputs no gradient goes.
        connections: from which parts of the model the others and the loss are given what they take.
        derivations: functions that were given something without gradients, and the operations that
            computed it; `NO_DERIVATION` where none was, "" where that is not known.
    """

    row: int
    step: int
    after: str
    formula: str
    settings: str
    draws: str
    cuts: str
    layers: str
    connections: str
    derivations: str


SETTINGS = frozenset(get_args(Setting))

_TOLD = ("formula", "settings", "draws", "cuts", "layers", "connections", "derivations")


class EarlyLosses:
    """Tells the losses of the first steps of a run after each class from later ones.

    Where an optimizer goes on from a loaded state, all are later ones.
    """

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._is_resumed = False

    def among(self, window: Window) -> Iterator[Loss]:
        """Yield the first ones among those of the next window."""
        loads = [one.row for one in loads_in(window, OPTIMIZER_LOAD) if resumes(window, one)]
        until = -1 if self._is_resumed else min(loads, default=len(window.calls))
        self._is_resumed |= bool(loads)
        for loss in losses(window):
            early = loss.step - self._first.setdefault(loss.after, loss.step) < FIRST
            if early and loss.row < until:
                yield loss


def losses(window: Window) -> list[Loss]:
    """Return the losses of a window of which the graph told something."""
    found: list[Loss] | None = window.cache.get(losses)
    if found is None:
        rows = completed(window, window.rows_of_role("backward"))
        rows = rows[is_backward(window)[rows]]
        catalog, calls = window.catalog, window.calls
        forwards = window.rows_of_role("forward")
        # Those of its own window, however windows are joined.
        first = np.searchsorted(window.position_of(forwards), window.position_of(rows))
        several = zip(
            rows.tolist(),
            catalog.contexts.column("step")[calls.context[rows]].tolist(),
            calls.inputs[rows].tolist(),
            first.tolist(),
            np.searchsorted(forwards, rows).tolist(),
            strict=True,
        )
        found = window.cache[losses] = []
        for row, step, code, start, stop in several:
            told = {item.path: str(item.value) for item in catalog.signature(code)}
            texts = [told.get(path, "") for path in _TOLD]
            if any(texts):
                found.append(Loss(row, step, _model_of(window, forwards[start:stop]), *texts))
    return found


Settings = Mapping[str, frozenset[str]]
"""The values of each ``operation.setting`` of a loss: several operations may have one."""


@lru_cache(maxsize=1024)
def settings_of(text: str) -> Settings:
    """Return what the settings of a loss tell."""
    found: dict[str, set[str]] = {}
    for setting in text.split():
        name, _, value = setting.partition("=")
        # A trace of another version may tell others.
        if name.rpartition(".")[2] in SETTINGS:
            found.setdefault(name, set()).add(value)
    return {name: frozenset(values) for name, values in found.items()}


def looks_back(settings: str) -> bool:
    """Return whether all attention of a loss hides from each position what comes later."""
    told = settings_of(settings)
    expected = {"attention.masked": {"yes"}, "self_attention.hides": {"later"}}
    return all(told.get(name, frozenset()) == values for name, values in expected.items())


def whose(after: str) -> str:
    """Return what a loss after the forward of a class is called."""
    return f"the loss of {after}" if after else "the loss"


def _model_of(window: Window, forwards: Int64) -> str:
    """Return the class of the last one that has parameters: a loss may be a module, too."""
    objects, has_parameters = window.catalog.objects, window.catalog.has_parameters
    for row in forwards[::-1].tolist():
        code = int(window.calls.object[row])
        if code != NONE and has_parameters(objects[code]):
            return class_name(objects[code])
    return ""
