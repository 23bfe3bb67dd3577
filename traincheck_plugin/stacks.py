"""Frames of many moments as 2-D arrays, and windows joined into stretches.

A training shows the same attributes of the same variables at every step. Put on top of each other,
such frames are one array per attribute, a row for each moment and a column for each variable: what
is asked of each frame is asked of all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from traincheck_plugin.events import Calls, Frame, Joint, Window
from traincheck_plugin.vocabulary import NONE, Array, Bool, Int32, Int64, Phase

MAX_CALLS = 32768
"""Calls of a stretch: enough that what is done once for all of them costs little for each."""

MAX_BYTES = 1 << 23
"""Memory that the frames of a stretch take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames that show the same attributes of the same variables.

    Attributes:
        variables: codes into the catalog, one for each column of the arrays.
        columns: attribute name to values, a row for each frame.
    """

    variables: Int32
    columns: Mapping[str, Array]

    @property
    def num_rows(self) -> int:
        """How many frames they are; 0 where they show nothing."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def num_bytes(self) -> int:
        """How much memory it takes."""
        return sum(column.nbytes for column in self.columns.values())


class Frames(Sequence[Frame]):
    """The frames of a window in order of sequence, stacked; single ones are made when asked for.

    Attributes:
        call, is_begin, sequence, context: of each frame, as in `Frame`.
        stacks: what they show.
        stack, row: in which of the stacks each frame is, and where there.
    """

    def __init__(
        self,
        *,
        call: Int64,
        is_begin: Bool,
        sequence: Int64,
        context: Int32,
        stacks: Sequence[Stack],
        stack: Int64,
        row: Int64,
    ) -> None:
        self.call = call
        self.is_begin = is_begin
        self.sequence = sequence
        self.context = context
        self.stacks = stacks
        self.stack = stack
        self.row = row
        self._made: dict[int, Frame] = {}

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> Frames:
        """Stack some frames."""
        groups: dict[tuple[object, ...], list[Frame]] = {}
        stack, row = [], []
        numbers: dict[tuple[object, ...], int] = {}
        texts: dict[int, bytes] = {}
        known: dict[bytes, Int32] = {}
        for frame in frames:
            variables = texts.get(id(frame.variables))
            if variables is None:
                variables = texts[id(frame.variables)] = frame.variables.tobytes()
                known.setdefault(variables, frame.variables)
            key = (variables, *frame.columns)
            group = groups.setdefault(key, [])
            stack.append(numbers.setdefault(key, len(numbers)))
            row.append(len(group))
            group.append(frame)
        return cls(
            call=np.array([frame.call for frame in frames], np.int64),
            is_begin=np.array([frame.phase == "begin" for frame in frames], np.bool_),
            sequence=np.array([frame.sequence for frame in frames], np.int64),
            context=np.array([frame.context for frame in frames], np.int32),
            stacks=[
                _stack(group, known[texts[id(group[0].variables)]]) for group in groups.values()
            ],
            stack=np.array(stack, np.int64),
            row=np.array(row, np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence[Frames]) -> Frames:
        """Return the frames of all *parts*, in a row."""
        if len(parts) == 1:
            return parts[0]
        numbers: dict[tuple[object, ...], int] = {}
        groups: list[list[Stack]] = []
        lengths: list[int] = []
        # The same variables are one array, by which they are known to be the same.
        known: dict[bytes, Int32] = {}
        stacks, rows = [], []
        for part in parts:
            where, shift = (
                np.empty(len(part.stacks), np.int64),
                np.empty(len(part.stacks), np.int64),
            )
            for old, stack in enumerate(part.stacks):
                variables = stack.variables.tobytes()
                known.setdefault(variables, stack.variables)
                key = (variables, *stack.columns)
                number = numbers.setdefault(key, len(numbers))
                if number == len(groups):
                    groups.append([])
                    lengths.append(0)
                where[old], shift[old] = number, lengths[number]
                groups[number].append(stack)
                lengths[number] += stack.num_rows
            stacks.append(where[part.stack])
            rows.append(part.row + shift[part.stack])
        return cls(
            call=np.concatenate([part.call for part in parts]),
            is_begin=np.concatenate([part.is_begin for part in parts]),
            sequence=np.concatenate([part.sequence for part in parts]),
            context=np.concatenate([part.context for part in parts]),
            stacks=[_joined(group, known[group[0].variables.tobytes()]) for group in groups],
            stack=np.concatenate(stacks),
            row=np.concatenate(rows),
        )

    def __len__(self) -> int:
        return len(self.call)

    @overload
    def __getitem__(self, key: int) -> Frame: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[Frame]: ...

    def __getitem__(self, key: int | slice) -> Frame | Sequence[Frame]:
        positions = range(len(self))[key]
        if isinstance(positions, range):
            return _Part(self, positions)
        frame = self._made.get(positions)
        if frame is None:
            frame = self._made[positions] = self._make(positions)
        return frame

    def _make(self, position: int) -> Frame:
        stack, row = self.stacks[int(self.stack[position])], int(self.row[position])
        phase: Phase = "begin" if self.is_begin[position] else "end"
        return Frame(
            call=int(self.call[position]),
            phase=phase,
            sequence=int(self.sequence[position]),
            context=int(self.context[position]),
            variables=stack.variables,
            columns={name: column[row] for name, column in stack.columns.items()},
        )


class _Part(Sequence[Frame]):
    """Some frames of many."""

    def __init__(self, frames: Frames, positions: range) -> None:
        self._frames = frames
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, key: int) -> Frame: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[Frame]: ...

    def __getitem__(self, key: int | slice) -> Frame | Sequence[Frame]:
        positions = self._positions[key]
        if isinstance(positions, range):
            return _Part(self._frames, positions)
        return self._frames[positions]


def _stack(frames: Sequence[Frame], variables: Int32) -> Stack:
    first = frames[0]
    return Stack(
        variables=variables,
        columns={
            name: column[None]
            if len(frames) == 1
            else np.concatenate([frame.columns[name] for frame in frames]).reshape(len(frames), -1)
            for name, column in first.columns.items()
        },
    )


def _joined(stacks: Sequence[Stack], variables: Int32) -> Stack:
    names = stacks[0].columns
    columns = {name: np.concatenate([stack.columns[name] for stack in stacks]) for name in names}
    return Stack(variables=variables, columns=columns)


def frames_of(window: Window) -> Frames:
    """Return the frames of *window*, stacked."""
    frames: Frames | None = window.cache.get(frames_of)
    if frames is None:
        frames = window.frames if isinstance(window.frames, Frames) else Frames.of(window.frames)
        window.cache[frames_of] = frames
    return frames


def join(windows: Sequence[Window]) -> Window:
    """Return windows in a row, of one process and all observed, as one."""
    if len(windows) == 1:
        return windows[0]
    indexes: list[int] = []
    calls, frames = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    for window in windows:
        joint = window.joint or Joint(
            indexes=(window.index,),
            calls=np.array([0, len(window.calls)]),
            frames=np.array([0, len(window.frames)]),
        )
        indexes += joint.indexes
        calls.append(calls[-1][-1] + joint.calls[1:])
        frames.append(frames[-1][-1] + joint.frames[1:])
    return Window(
        index=windows[0].index,
        rank=windows[0].rank,
        calls=Calls.join([window.calls for window in windows]),
        frames=Frames.join([frames_of(window) for window in windows]),
        catalog=windows[0].catalog,
        joint=Joint(indexes=indexes, calls=np.concatenate(calls), frames=np.concatenate(frames)),
    )


def stretches(windows: Iterable[Window]) -> Iterator[Window]:
    """Join windows, or stretches, into longer stretches of bounded size.

    Nothing is joined until an optimizer has stepped: what a program is, is told then. Nor are
    windows whose calls would not be in the order of their ends, as those of other threads may be.

    Args:
        windows: of one process, in order.
    """
    waiting: list[Window] = []
    num_calls = num_bytes = last_end = 0
    has_stepped = may_join = False
    for window in windows:
        calls = len(window.calls)
        size = sum(stack.num_bytes for stack in frames_of(window).stacks)
        if waiting and (
            not may_join
            or not window.observed
            or not waiting[0].observed
            or num_calls + calls > MAX_CALLS
            or num_bytes + size > MAX_BYTES
            or (calls and window.calls.end[0] < last_end)
        ):
            yield join(waiting)
            waiting, num_calls, num_bytes = [], 0, 0
            may_join = has_stepped
        has_stepped = has_stepped or len(window.rows_of_role("step")) > 0
        waiting.append(window)
        last_end = int(window.calls.end[-1]) if calls else last_end
        num_calls += calls
        num_bytes += size
    if waiting:
        yield join(waiting)


def row_of_frames(window: Window) -> Int64:
    """Return for each frame the row of its call, `NONE` where another window has that."""
    rows: Int64 | None = window.cache.get(row_of_frames)
    if rows is None:
        frames, calls = frames_of(window), window.calls.call
        if not len(calls):
            rows = np.full(len(frames), NONE, np.int64)
        else:
            order = np.argsort(calls)
            found = np.minimum(np.searchsorted(calls, frames.call, sorter=order), len(calls) - 1)
            rows = order[found]
            is_there = calls[rows] == frames.call
            if window.joint is not None:
                part = np.searchsorted(window.joint.frames, np.arange(len(frames)), side="right")
                is_there &= window.position_of(rows) == part - 1
            rows = np.where(is_there, rows, NONE)
        window.cache[row_of_frames] = rows
    return rows
