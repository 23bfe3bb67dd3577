"""The samples that models are given, and which of them were given before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import VAR_TYPES, VarNameParam
from traincheck_plugin.plan import Plan
from traincheck_plugin.relations.naming import class_name
from traincheck_plugin.relations.passing import frames_of
from traincheck_plugin.vocabulary import MAX_SAMPLES

MAX_KEPT = 1 << 17
"""Samples that are kept in mind: those with the smallest keys."""

SAMPLE = VAR_TYPES["sample"]

SAMPLES_PLAN = Plan(functions=frozenset(), attributes={"forward": frozenset({("sample", "data")})})


def samples_named(name: str) -> VarNameParam:
    """Return the parameter that stands for the samples of this name, that of a `Given`."""
    return VarNameParam(var_name=name, var_type=SAMPLE, attr_name="data")


class Given(NamedTuple):
    """The samples in one argument of a forward.

    Attributes:
        row: of the forward.
        model: its label.
        name: class of the model and path of the argument: ``Net.0``.
        is_real: whether they are of real numbers.
        trains: whether it is with gradients.
        epoch: of the training.
        keys: of up to `MAX_SAMPLES`, those with the smallest keys.
    """

    row: int
    model: str
    name: str
    is_real: bool
    trains: bool
    epoch: int
    keys: list[int]


def keys_of(frame: Frame) -> list[int]:
    """Return the keys of the samples in a frame; none where they differ in what has none."""
    keys: list[int] = frame.columns["data"].tolist()
    return keys if any(keys) else []


def given(window: Window) -> list[Given]:
    """Return the samples that models are given, in the order of the forwards."""
    found: list[Given] | None = window.cache.get(given)
    if found is None:
        begin = window.calls.begin
        found = window.cache[given] = sorted(_given(window), key=lambda one: int(begin[one.row]))
    return found


def _given(window: Window) -> Iterator[Given]:
    contexts, context = window.catalog.contexts, window.calls.context
    enabled, epochs = contexts.column("grad_enabled"), contexts.column("epoch")
    for row, frame in frames_of(window, "sample"):
        variable = window.catalog.variables[int(frame.variables[0])]
        # With a value, that of a target, they are told once more, and with no model those of one.
        keys = keys_of(frame)
        if keys and "value" not in frame.columns and "#" in variable.owner:
            code = context[row]
            yield Given(
                row,
                variable.owner,
                f"{class_name(variable.owner)}.{variable.name}",
                "float" in variable.type,
                bool(enabled[code]),
                int(epochs[code]),
                keys,
            )


class KnownSamples:
    """Which samples were given before.

    Of a large batch only the smallest keys are told, and of many samples only these are kept: of
    larger keys it is not known whether they were there.
    """

    def __init__(self) -> None:
        self._keys: set[int] = set()
        self._limit = 1 << 63

    def __bool__(self) -> bool:
        return bool(self._keys)

    def among(self, keys: list[int]) -> list[bool]:
        """Return of those of *keys* that would have been told whether they are known."""
        return [key in self._keys for key in keys if key < self._limit]

    def add(self, keys: list[int]) -> None:
        """Take note of the samples of one argument."""
        if len(keys) == MAX_SAMPLES:
            self._limit = min(self._limit, max(keys))
        self._keys.update(keys)
        if len(self._keys) > MAX_KEPT:
            kept = sorted(self._keys)[: MAX_KEPT // 2]
            self._limit = min(self._limit, kept[-1])
            self._keys = set(kept)
