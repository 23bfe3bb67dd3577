"""What passes through training: the inputs of its forwards, and the batches they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from traincheck_plugin.events import LOADER_FACTS, NONE, Frame, VariableKind, Window

MIN_ELEMENTS = 32
"""With fewer, two batches may be equal by chance."""

MAX_WAITING = 64
"""Batches that are kept until it shows what they are for."""

Kind = tuple[str, tuple[int, ...]]
"""Dtype and shape of a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What a forward in training was given.

    Attributes:
        row: of the call.
        begin: when it began.
        root: label of the module: ``__main__.Net#0``.
        key: tells it from other inputs; empty where it is not known.
        num_elements: of all its tensors.
        kinds: of its tensors.
    """

    row: int
    begin: int
    root: str
    key: bytes
    num_elements: int
    kinds: frozenset[Kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A batch for training.

    Attributes:
        loader: its label.
        key, num_elements, kinds: as of an `Input`.
        facts: those of `LOADER_FACTS`, by name.
        end: when it was delivered.
    """

    loader: str
    key: bytes
    num_elements: int
    kinds: frozenset[Kind]
    facts: dict[str, float]
    end: int


def frames_of(window: Window, kind: VariableKind) -> Iterator[tuple[int, Frame]]:
    """Yield the row of the call and the frame, of each frame of variables of *kind*."""
    for frame in window.frames:
        if window.kind(frame) == kind and frame.call in window.row_of_call:
            yield window.row_of_call[frame.call], frame


def inputs_of(window: Window) -> list[Input]:
    """Return the inputs of the forwards in training, in the order in which these began."""
    calls, catalog = window.calls, window.catalog
    found = [
        Input(
            row=row,
            begin=int(calls.begin[row]),
            root=catalog.variables[int(frame.variables[0])].owner,
            key=_key(frame),
            num_elements=int(frame.columns["value"].sum()),
            kinds=_kinds(window, int(calls.inputs[row])),
        )
        for row, frame in frames_of(window, "input")
        if "data" in frame.columns
    ]
    return sorted(found, key=lambda one: one.begin)


class Beginnings:
    """Tells when training begins anew: with another optimizer, or an earlier state of it."""

    def __init__(self) -> None:
        self._optimizers: set[int] = set()

    def observe(self, window: Window) -> list[int]:
        """Return when it does in the next window, in order."""
        calls, apis = window.calls, window.catalog.apis
        rows = [window.rows_of_name("torch.optim.Optimizer.load_state_dict")]
        rows += [window.rows_of_api(c) for c in window.api_codes if apis[c].role == "construct"]
        times: list[int] = np.sort(calls.begin[np.concatenate(rows)]).tolist()
        stepping = {
            target
            for code in window.api_codes
            if apis[code].role == "step"
            for target in calls.object[window.rows_of_api(code)].tolist()
        }
        if not stepping <= self._optimizers:
            # One that was made while nobody looked.
            self._optimizers |= stepping
            times.insert(0, NONE)
        return times


class Deliveries:
    """Tells the batches for training from those for evaluation, by what is done with them next."""

    def __init__(self) -> None:
        self._waiting: list[Delivery] = []

    def observe(self, window: Window, inputs: list[Input]) -> list[tuple[Input, list[Delivery]]]:
        """Return the inputs that follow batches, and these batches.

        Args:
            window: the next one.
            inputs: its own.
        """
        self._waiting = [*self._waiting, *_delivered(window)][-MAX_WAITING:]
        if not self._waiting:
            return []
        calls, catalog = window.calls, window.catalog
        evaluated = [
            int(calls.begin[row])
            for code in window.api_codes
            if catalog.apis[code].role == "forward"
            for row in window.rows_of_api(code)
            if catalog.contexts[int(calls.context[row])].stage != "training"
            and catalog.contexts[int(calls.context[row])].stage != "init"
        ]
        uses: list[tuple[int, Input | None]] = [(one.begin, one) for one in inputs]
        uses += [(begin, None) for begin in evaluated]
        result = []
        for begin, use in sorted(uses, key=lambda pair: pair[0]):
            batches = [one for one in self._waiting if one.end < begin]
            if batches:
                self._waiting = [one for one in self._waiting if one.end >= begin]
                if use is not None:
                    result.append((use, batches))
        return result


def _delivered(window: Window) -> Iterator[Delivery]:
    facts = {
        frame.call: dict(zip(LOADER_FACTS, frame.columns["value"].tolist(), strict=True))
        for _, frame in frames_of(window, "loader")
    }
    for row, frame in frames_of(window, "batch"):
        told = facts.get(frame.call)
        if told is not None and "data" in frame.columns:
            yield Delivery(
                loader=window.catalog.variables[int(frame.variables[0])].owner,
                key=_key(frame),
                num_elements=int(frame.columns["value"].sum()),
                kinds=_kinds(window, int(window.calls.outputs[row])),
                facts=told,
                end=int(window.calls.end[row]),
            )


def _key(frame: Frame) -> bytes:
    hashes = frame.columns["data"]
    return hashes.tobytes() if hashes.all() else b""


def _kinds(window: Window, signature: int) -> frozenset[Kind]:
    return frozenset(
        (item.dtype, item.shape)
        for item in window.catalog.signature(signature)
        if item.dtype is not None and item.shape
    )
