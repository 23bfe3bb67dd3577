"""The frames that rules about one API look at: many moments at once, as rows of 2-D arrays.

What several rules ask of the same frames is found out once and kept with the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Frame, Window
from traincheck_plugin.invariants.model import VAR_TYPES, VarTypeParam
from traincheck_plugin.relations.frames import (
    frames_at,
    is_named,
    of_type,
    stacks_of,
    types_of,
)
from traincheck_plugin.relations.values import matches
from traincheck_plugin.stacks import frames_of, row_of_frames
from traincheck_plugin.vocabulary import NONE, Array, Bool, GradState, Int32, Int64

_MOBILITY = ("grad", "lr", "grad_norm", "data_norm", "dtype")

RESOLUTION = {
    "torch.float64": 2.3e-16,
    "torch.float32": 1.2e-7,
    "torch.float16": 9.8e-4,
    "torch.bfloat16": 7.9e-3,
}


NOISE = 16
"""How many times smaller than a gradient an update may be: those of a bias before a softmax are but
rounding errors, and momentum adds up what cancels out."""

CHANCE = 1e-6
"""What comes by chance less often than this does not come by chance."""

MAX_SIZE = 64
"""So many elements never stay by chance."""


class Moments:
    """Frames that show the same attributes of the same variables.

    Attributes:
        variables: codes into the catalog, one for each column of the arrays.
        positions: of the frames among those of the window.
        is_begin: whether each is of the begin of its call.
        calls: for each frame the row of its call, `NONE` where another window has that.
    """

    def __init__(
        self,
        window: Window,
        variables: Int32,
        columns: Mapping[str, Array],
        rows: Int64 | slice | None,
        *,
        positions: Int64,
        is_begin: Bool,
        calls: Int64,
    ) -> None:
        self.variables = variables
        self.positions = positions
        self.is_begin = is_begin
        self.calls = calls
        # The window keeps this, and must not be kept by it.
        self._catalog = window.catalog
        self._objects = window.calls.object
        self._columns = columns
        self._rows = rows
        self._cache: dict[Any, Any] = {}

    @classmethod
    def of(cls, window: Window, positions: Int64) -> Moments:
        """Return frames that show the same; of a single window no more than one."""
        if window.joint is None:
            return cls.of_frame(window, int(positions[0]))
        return cls.of_stack(window, int(frames_of(window).stack[positions[0]]), positions)

    @classmethod
    def of_frame(cls, window: Window, position: int) -> Moments:
        """Return one frame, as it is."""
        key = cls, position
        found: Moments | None = window.cache.get(key)
        if found is None:
            frame = window.frames[position]
            found = window.cache[key] = cls(
                window,
                frame.variables,
                frame.columns,
                None,
                positions=np.array([position]),
                is_begin=np.array([frame.phase == "begin"]),
                calls=np.array([window.row_of_call.get(frame.call, NONE)]),
            )
        return found

    @classmethod
    def of_stack(cls, window: Window, number: int, positions: Int64) -> Moments:
        """Return some frames of a stack."""
        frames = frames_of(window)
        stack = frames.stacks[number]
        # Most often it is the whole stack, in order: nothing has to be copied then.
        is_whole = len(positions) == stack.num_rows and bool((positions[1:] > positions[:-1]).all())
        return cls(
            window,
            stack.variables,
            stack.columns,
            slice(None) if is_whole else frames.row[positions],
            positions=positions,
            is_begin=frames.is_begin[positions],
            calls=row_of_frames(window)[positions],
        )

    def __len__(self) -> int:
        return len(self.positions)

    def has(self, attribute: str) -> bool:
        """Return whether the frames show an attribute."""
        return attribute in self._columns or attribute in self._cache

    def add(self, attribute: str, values: Array) -> None:
        """Show an attribute that follows from others, a row for each frame."""
        self._cache[attribute] = values

    def column(self, attribute: str) -> Array:
        """Return the values of an attribute, a row for each frame."""
        # One frame, of which the selection is None, becomes one row.
        values: Array | None = self._cache.get(attribute)
        if values is None:
            values = self._cache[attribute] = self._columns[attribute][self._rows]
        return values

    def matches(self, attribute: str, expected: Any) -> Bool:
        """Return which values of an attribute are *expected*; see `values.matches`."""
        key = attribute, expected, type(expected)
        found: Bool | None = self._cache.get(key)
        if found is None:
            found = self._cache[key] = matches(attribute, expected, self.column(attribute))
        return found

    def select(self, where: tuple[tuple[str, Any], ...]) -> Bool | None:
        """Return which variables some conditions select in each frame; None if that is not shown.

        ``held`` refers to the optimizer that the call of the frame is on; without one no variable
        is held. ``owned`` refers to the model that it is on.
        """
        key = "where", where
        if key in self._cache:
            selected: Bool | None = self._cache[key]
            return selected
        selected = self._cache[key] = self._select(where)
        return selected

    def has_some(self, where: tuple[tuple[str, Any], ...]) -> Bool:
        """Return in which frames some conditions select a variable."""
        key = "some", where
        found: Bool | None = self._cache.get(key)
        if found is None:
            selected = self.select(where)
            if selected is None:
                found = np.zeros(len(self), np.bool_)
            else:
                found = np.logical_or.reduce(selected, axis=1)
            self._cache[key] = found
        return found

    def _select(self, where: tuple[tuple[str, Any], ...]) -> Bool | None:
        mask = np.ones((len(self), len(self.variables)), np.bool_)
        for attribute, expected in where:
            if attribute == "held":
                if not self.has("optimizer"):
                    return None
                mask &= self._held(expected)
            elif attribute == "owned":
                mask &= self._owned(expected)
            elif not self.has(attribute):
                return None
            else:
                mask &= self.matches(attribute, expected)
        return mask

    def _held(self, expected: bool) -> Bool:
        key = "held", expected
        held: Bool | None = self._cache.get(key)
        if held is None:
            holder = np.full((len(self), 1), NONE, np.int32)
            known = self.calls >= 0
            holder[known, 0] = self._objects[self.calls[known]]
            held = ((self.column("optimizer") == holder) == expected) & (holder >= 0)
            self._cache[key] = held
        return held

    def _owned(self, expected: bool) -> Bool:
        objects = np.full(len(self), NONE, np.int32)
        known = self.calls >= 0
        objects[known] = self._objects[self.calls[known]]
        owned: Bool = self._catalog.is_owned(self.variables, objects) == expected
        return owned

    def inert(self, *, normalised: bool) -> Bool:
        """Return which parameters an optimizer cannot be expected to move; see `inert`."""
        key = "inert", normalised
        found: Bool | None = self._cache.get(key)
        if found is None:
            columns = {name: self.column(name) for name in _MOBILITY if self.has(name)}
            shape = len(self), len(self.variables)
            found = self._cache[key] = _inert(
                self._catalog, self.variables, columns, shape, normalised
            )
        return found


@dataclass(frozen=True, slots=True)
class Pair:
    """Frames at the begin of some calls, and those at their end.

    Attributes:
        begin, end: a frame of each call, in the same order.
        common: columns of *begin* and of *end* that show the same variables; None where all do.
    """

    begin: Moments
    end: Moments
    common: tuple[Array, Array] | None


def moments(window: Window, about: VarTypeParam) -> list[Moments]:
    """Return the frames that show the attribute of the type of variable of *about*."""
    key = moments, about.var_type
    found: list[Moments] | None = window.cache.get(key)
    if found is None:
        if window.joint is None:
            found = [Moments.of_frame(window, p) for p in of_type(window, about.var_type)]
        else:
            stack_of = frames_of(window).stack
            found = [
                Moments.of_stack(window, number, np.flatnonzero(stack_of == number))
                for number, name in enumerate(types_of(window))
                if name == about.var_type
            ]
        window.cache[key] = found
    return [m for m in found if m.has(about.attr_name)]


def moments_at_begin(window: Window, name: str, var_type: str) -> list[Moments]:
    """Return the frames of a type of variable at the begin of calls that answer to *name*."""
    key = moments_at_begin, name, var_type
    found: list[Moments] | None = window.cache.get(key)
    if found is None:
        found = window.cache[key] = []
        rows = window.rows_of_name(name)
        if window.joint is None:
            calls = set(window.calls.call[rows].tolist())
            found += [
                Moments.of_frame(window, position)
                for position in (of_type(window, var_type) if calls else ())
                if window.frames[position].phase == "begin"
                and window.frames[position].call in calls
            ]
        elif len(rows):
            frames, types = frames_of(window), types_of(window)
            mask = frames.is_begin & is_named(window, name)[row_of_frames(window)]
            positions = np.flatnonzero(mask)
            for number in np.unique(frames.stack[positions]).tolist():
                if types[number] == var_type:
                    chosen = positions[frames.stack[positions] == number]
                    found.append(Moments.of_stack(window, number, chosen))
    return found


def pairs_of_calls(window: Window, name: str, about: VarTypeParam) -> list[Pair]:
    """Return what calls whose API answers to *name* began with and ended with.

    A call takes one frame that shows the attribute at its begin, and one at its end.
    """
    key = pairs_of_calls, name, about.var_type, about.attr_name
    found: list[Pair] | None = window.cache.get(key)
    if found is None:
        found = window.cache[key] = list(pairs(window, window.rows_of_name(name), about))
    return found


def pairs(window: Window, rows: Int64, about: VarTypeParam) -> Iterator[Pair]:
    """Yield what some calls began with and ended with; see `pairs_of_calls`."""
    if not len(rows):
        return
    shows = (about.attr_name,)
    begins = frames_at(window, rows, about.var_type, shows, is_begin=True)
    ends = frames_at(window, rows, about.var_type, shows, is_begin=False)
    if window.joint is None:
        for first, second in zip(begins.tolist(), ends.tolist(), strict=True):
            if first != NONE and second != NONE:
                begin, end = Moments.of_frame(window, first), Moments.of_frame(window, second)
                yield Pair(begin, end, _common(begin.variables, end.variables))
        return
    both = (begins != NONE) & (ends != NONE)
    begins, ends = begins[both], ends[both]
    firsts, seconds = stacks_of(window, begins), stacks_of(window, ends)
    for first, second in dict.fromkeys(zip(firsts.tolist(), seconds.tolist(), strict=True)):
        chosen = (firsts == first) & (seconds == second)
        begin, end = Moments.of(window, begins[chosen]), Moments.of(window, ends[chosen])
        yield Pair(begin, end, _common(begin.variables, end.variables))


def changes(both: Pair) -> tuple[Int32, Bool]:
    """Return which variables the calls of a pair show at both ends, and whether those changed."""
    before, after = both.begin.column("data"), both.end.column("data")
    if both.common is None:
        return both.begin.variables, before != after
    first, second = both.common
    return both.begin.variables[first], before[:, first] != after[:, second]


def by_stack(window: Window, positions: Int64) -> Iterator[tuple[Int64, Moments]]:
    """Yield frames by what they show, each time with their indexes among *positions*.

    Those of no frame (`NONE`) are left out.
    """
    if window.joint is None:
        for index, position in enumerate(positions.tolist()):
            if position != NONE:
                yield np.array([index]), Moments.of_frame(window, position)
        return
    stacks = stacks_of(window, positions)
    for stack in dict.fromkeys(stacks.tolist()):
        if stack == NONE:
            continue
        indexes = np.flatnonzero(stacks == stack)
        yield indexes, Moments.of(window, positions[indexes])


def fold(ufunc: np.ufunc, table: Array, rows: Int64, columns: Int64, values: Array) -> None:
    """Combine values with those of a table; several of them may be of the same row of it.

    Args:
        ufunc: combines two values.
        table: gets the results.
        rows: of the table, one for each row of *values*, ascending.
        columns: of the table, one for each column.
        values: what is combined with it.
    """
    present, first = np.unique(rows, return_index=True)
    cells = np.ix_(present, columns)
    table[cells] = ufunc(table[cells], ufunc.reduceat(values, first, axis=0))


def _common(first: Int32, second: Int32) -> tuple[Array, Array] | None:
    if first is second or np.array_equal(first, second):
        return None
    _, rows, others = np.intersect1d(first, second, return_indices=True)
    return rows, others


def inert(window: Window, frame: Frame, *, normalised: bool) -> Bool:
    """Return which parameters an optimizer cannot be expected to move.

    The size of an update is bounded with the learning rate and the gradient norm, as it is in
    plain gradient descent; *normalised* takes the larger bound of optimizers that scale gradients
    to about 1, so that fewer parameters are excused. Without it a parameter of a few elements is
    excused as well where all of them may stay by chance: momentum passes through 0 now and then.
    """
    return _inert(window.catalog, frame.variables, frame.columns, (len(frame),), normalised)


def _inert(
    catalog: Catalog,
    variables: Int32,
    columns: Mapping[str, Array],
    shape: tuple[int, ...],
    normalised: bool,
) -> Bool:
    inert = np.zeros(shape, np.bool_)
    if "grad" in columns:
        inert |= columns["grad"] == GradState.ZERO
    if "lr" in columns:
        inert |= columns["lr"] == 0
    if {"lr", "grad", "grad_norm", "data_norm", "dtype"} <= set(columns):
        sizes = catalog.num_elements(variables)
        strings = catalog.strings
        resolution = np.zeros(len(strings) + 1)  # the last is that of `NONE`
        for name, value in RESOLUTION.items():
            code = strings.find(name)
            if code != NONE:
                resolution[code] = value
        gradient = columns["grad_norm"]
        gradient = np.maximum(gradient, 1.0) if normalised else gradient / NOISE
        typical = columns["data_norm"] / np.sqrt(np.maximum(sizes, 1))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            share = resolution[columns["dtype"]] * typical / (columns["lr"] * gradient)
            # Each element stays where it is about as often as the resolution is of the update.
            chance = share if normalised else share ** np.minimum(sizes, MAX_SIZE)
            below = chance > (1.0 if normalised else CHANCE)
        inert |= below & (columns["grad"] == GradState.NON_ZERO)
    return inert


def has_gradients(window: Window, rows: Int64) -> Bool:
    """Return which calls are shown to meet a gradient."""
    has = np.zeros(len(rows), np.bool_)
    shown = frames_at(window, rows, VAR_TYPES["parameter"], ("grad",), is_begin=True)
    for indexes, moments in by_stack(window, shown):
        has[indexes] = moments.matches("grad", "non_zero").any(axis=1)
    return has
