"""Finds the frames of calls: in a single window one by one, in a stretch all at once."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from traincheck_plugin.events import Window
from traincheck_plugin.invariants.model import VAR_TYPES
from traincheck_plugin.relations.lifecycle import AUTOGRAD_GRAD
from traincheck_plugin.stacks import frames_of, row_of_frames
from traincheck_plugin.vocabulary import NONE, Bool, Int32, Int64


def is_named(window: Window, name: str) -> Bool:
    """Return for each call whether its API answers to *name*; the last is that of `NONE`."""
    key = is_named, name
    mask: Bool | None = window.cache.get(key)
    if mask is None:
        mask = window.cache[key] = np.zeros(len(window.calls) + 1, np.bool_)
        mask[window.rows_of_name(name)] = True
    return mask


def is_backward(window: Window) -> Bool:
    """Return for each call whether it adds to gradients; the last is that of `NONE`."""
    mask: Bool | None = window.cache.get(is_backward)
    if mask is None:
        mask = window.cache[is_backward] = np.zeros(len(window.calls) + 1, np.bool_)
        mask[window.rows_of_role("backward")] = True
        mask[window.rows_of_name(AUTOGRAD_GRAD)] = False
    return mask


def place(window: Window, positions: Int64) -> tuple[Int64, Int32, Int64]:
    """Return of frames the rows of their calls, their contexts and their sequence numbers."""
    if window.joint is None:
        frames = [window.frames[position] for position in positions.tolist()]
        return (
            np.array([window.row_of_call.get(frame.call, NONE) for frame in frames], np.int64),
            np.array([frame.context for frame in frames], np.int32),
            np.array([frame.sequence for frame in frames], np.int64),
        )
    stacked = frames_of(window)
    rows = row_of_frames(window)[positions]
    return rows, stacked.context[positions], stacked.sequence[positions]


def times_of(window: Window, rows: Int64, sequence: Int64) -> Int64:
    """Return when something happened at these calls, in order of windows first.

    A call is seen in the window in which it ends, also where it began before.
    """
    if window.joint is None or not len(rows):
        return sequence
    return window.position_of(rows) * (int(window.calls.end[-1]) + 2) + sequence


def frames_at(
    window: Window, rows: Int64, var_type: str, attributes: tuple[str, ...], *, is_begin: bool
) -> Int64:
    """Return for each of these calls the position of its frame that shows the attributes.

    Args:
        window: where the calls are.
        rows: of the calls.
        var_type: type of the variables.
        attributes: of them.
        is_begin: whether the frame at the begin of the call is meant, or that at its end.

    Returns:
        `NONE` for a call without such a frame.
    """
    key = frames_at, var_type, attributes, is_begin
    by_row: Int64 | None = window.cache.get(key)
    if by_row is None:
        # The last is that of frames whose calls are in another window.
        by_row = window.cache[key] = np.full(len(window.calls) + 1, NONE, np.int64)
        if window.joint is None:
            for position, row, of_begin, columns in _calls_of_type(window, var_type):
                if of_begin == is_begin and _shows(columns, attributes):
                    by_row[row] = position
        else:
            frames = frames_of(window)
            shows = [
                name == var_type and _shows(stack.columns, attributes)
                for name, stack in zip(types_of(window), frames.stacks, strict=True)
            ]
            of_them = np.array(shows, np.bool_)[frames.stack] & (frames.is_begin == is_begin)
            chosen = np.flatnonzero(of_them)
            by_row[row_of_frames(window)[chosen]] = chosen
        by_row[NONE] = NONE
    positions: Int64 = by_row[rows]
    return positions


def _shows(columns: Container[str], attributes: tuple[str, ...]) -> bool:
    for name in attributes:  # noqa: SIM110  # it is asked of each frame in the training loop
        if name not in columns:
            return False
    return True


def _calls_of_type(window: Window, var_type: str) -> list[tuple[int, int, bool, Container[str]]]:
    """Return the frames of a single window: positions, rows of calls, whether of their begin."""
    key = _calls_of_type, var_type
    found: list[tuple[int, int, bool, Container[str]]] | None = window.cache.get(key)
    if found is None:
        found = window.cache[key] = []
        for position in of_type(window, var_type):
            frame = window.frames[position]
            row = window.row_of_call.get(frame.call, NONE)
            found.append((position, row, frame.phase == "begin", frame.columns))
    return found


def positions_of(window: Window, var_type: str) -> Int64:
    """Return the positions of the frames that show a type of variable."""
    if window.joint is None:
        return np.array(of_type(window, var_type), np.int64)
    is_of_type = np.array([name == var_type for name in types_of(window)], np.bool_)
    return np.flatnonzero(is_of_type[frames_of(window).stack])


def stacks_of(window: Window, positions: Int64) -> Int64:
    """Return numbers that are the same for frames of one stack; `NONE` for no frame."""
    if window.joint is None:
        return positions
    there = positions != NONE
    stacks = np.full(len(positions), NONE, np.int64)
    stacks[there] = frames_of(window).stack[positions[there]]
    return stacks


def compare(window: Window, first: Int64, second: Int64, attribute: str) -> tuple[Bool, Bool]:
    """Return for pairs of frames whether they show the same variables, and whether those differ.

    Args:
        window: where the frames are.
        first: positions of frames; `NONE` shows nothing.
        second: those that they are compared with.
        attribute: of the variables.
    """
    is_same, differs = np.zeros((2, len(first)), np.bool_)
    there = np.flatnonzero((first != NONE) & (second != NONE))
    if window.joint is None:
        for index in there.tolist():
            one, other = window.frames[first[index]], window.frames[second[index]]
            is_same[index] = _are_alike(one.variables, other.variables)
            differs[index] = is_same[index] and bool(
                (one.columns[attribute] != other.columns[attribute]).any()
            )
        return is_same, differs
    frames = frames_of(window)
    both = frames.stack[first[there]] * len(frames.stacks) + frames.stack[second[there]]
    for number in np.unique(both).tolist():
        stack, other_stack = (frames.stacks[n] for n in divmod(number, len(frames.stacks)))
        if _are_alike(stack.variables, other_stack.variables):
            chosen = there[both == number]
            values = stack.columns[attribute][frames.row[first[chosen]]]
            others = other_stack.columns[attribute][frames.row[second[chosen]]]
            is_same[chosen] = True
            differs[chosen] = (values != others).any(axis=1)
    return is_same, differs


def _are_alike(first: Int32, second: Int32) -> bool:
    return first is second or np.array_equal(first, second)


def of_type(window: Window, var_type: str) -> list[int]:
    """Return the positions of the frames of a single window that show a type of variable."""
    by_type: dict[str, list[int]] | None = window.cache.get(of_type)
    if by_type is None:
        by_type = window.cache[of_type] = {}
        for position, frame in enumerate(window.frames):
            kind = window.kind(frame)
            if kind is not None:
                by_type.setdefault(VAR_TYPES[kind], []).append(position)
    return by_type.get(var_type, [])


def types_of(window: Window) -> list[str]:
    """Return what type of variable each stack shows, "" for none."""
    types: list[str] | None = window.cache.get(types_of)
    if types is None:
        variables = window.catalog.variables
        types = window.cache[types_of] = [
            VAR_TYPES[variables[int(stack.variables[0])].kind] if len(stack.variables) else ""
            for stack in frames_of(window).stacks
        ]
    return types
