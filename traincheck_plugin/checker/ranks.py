"""Puts the ranks of a run side by side: training steps of all ranks together, as windows.

Ranks are aligned on the number of the training step alone: how many calls each made, and in how
many windows, does not matter. Of each rank only what it had after the step is kept, so what waits
for the slowest rank is some numbers for each variable, and never a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import Calls, Frame, Window
from traincheck_plugin.relations.passing import MIN_ELEMENTS, frames_of, inputs_of
from traincheck_plugin.trace.reader import RankTrace
from traincheck_plugin.vocabulary import NONE, Api, Array, Context, Int32, Int64, Phase, Variable

MAX_WAITING = 256
"""Steps that wait for a rank that is behind; a rank that died must not hold up the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Some attributes of variables of one kind, after a step (``end``) or before it (``begin``).

    Attributes:
        phase: which of the two.
        variables: codes into the catalog of all ranks.
        columns: attribute name to values.
    """

    phase: Phase
    variables: Int32
    columns: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What one rank had after one training step.

    Attributes:
        context: of the call of the step: which rank, which step.
        api: what was called.
        source: the user's line.
        begin_ns, end_ns: when, since the start of the recording of that rank.
        states: of each kind of variable.
    """

    context: Context
    api: Api
    source: str
    begin_ns: int
    end_ns: int
    states: tuple[State, ...]

    @property
    def step(self) -> int:
        """The number of the training step."""
        return self.context.step


class MomentReader:
    """Reads the moments of one rank off its windows.

    Args:
        catalog: of all ranks.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._codes: Int32 = np.empty(0, np.int32)

    def read(self, window: Window) -> Moment | None:
        """Return what the rank had after the training step of *window*; None if it has none."""
        apis = window.catalog.apis
        steps = [code for code in window.api_codes if apis[code].role == "step"]
        if not steps:
            return None
        calls = window.calls
        rows = np.concatenate([window.rows_of_api(code) for code in steps])
        rows = np.sort(rows[calls.exception[rows] == NONE])
        if not len(rows):
            return None
        states = [
            *self._after_steps(window, rows),
            *self._buffers(window),
            *self._inputs(window),
            *self._generators(window),
        ]
        if not states:
            return None
        row = int(rows[-1])
        source = int(calls.source[row])
        return Moment(
            context=window.catalog.contexts[int(calls.context[row])],
            api=apis[int(calls.api[row])],
            source=window.catalog.sources[source] if source != NONE else "",
            begin_ns=int(calls.begin_ns[row]),
            end_ns=int(calls.end_ns[row]),
            states=tuple(states),
        )

    def _after_steps(self, window: Window, rows: Int64) -> Iterator[State]:
        last: dict[object, Frame] = {}
        for row in rows:
            for frame in window.frames_of_call.get(int(window.calls.call[row]), ()):
                kind = window.kind(frame)
                if frame.phase == "begin":
                    if kind == "parameter" and "grad_norm" in frame.columns:
                        last["gradients"] = frame
                elif kind == "parameter":
                    last[kind] = frame
                else:
                    # Each optimizer tells of its own.
                    last[kind, int(window.calls.object[row])] = frame
        for key, frame in last.items():
            names = ("grad_norm",) if key == "gradients" else ("data", "value", "placement")
            yield from self._state(window, frame, names)

    def _buffers(self, window: Window) -> Iterator[State]:
        last = None
        for frame in window.frames:
            row = window.row_of_call.get(frame.call, NONE)
            if row == NONE or frame.phase != "end" or window.kind(frame) != "buffer":
                continue
            if window.catalog.apis[int(window.calls.api[row])].role == "forward":
                last = frame
        if last is not None:
            yield from self._state(window, last, ("data",))

    def _inputs(self, window: Window) -> Iterator[State]:
        """Yield one number for all that the models were given, if it is enough to tell ranks by."""
        inputs = inputs_of(window)
        is_known = all(one.key for one in inputs)
        if is_known and sum(one.num_elements for one in inputs) >= MIN_ELEMENTS:
            variable = Variable(kind="input", name="inputs", owner="", type="torch.Tensor")
            digest = xxhash.xxh3_64_intdigest(b"".join(one.key for one in inputs))
            yield State(
                phase="begin",
                variables=np.array([self._catalog.variables.code(variable)], np.int32),
                columns={"data": np.array([digest], np.uint64)},
            )

    def _generators(self, window: Window) -> Iterator[State]:
        begins = [frame for _, frame in frames_of(window, "generator") if frame.phase == "begin"]
        if begins:
            yield from self._state(window, begins[-1], ("data",))

    def _state(self, window: Window, frame: Frame, names: Sequence[str]) -> Iterator[State]:
        columns = {name: frame.columns[name] for name in names if name in frame.columns}
        if columns and len(frame):
            variables = self._translated(window.catalog)[frame.variables]
            yield State(phase=frame.phase, variables=variables, columns=columns)

    def _translated(self, catalog: Catalog) -> Int32:
        known = len(self._codes)
        if known < len(catalog.variables):
            new = [
                self._catalog.variables.code(catalog.variables[code])
                for code in range(known, len(catalog.variables))
            ]
            self._codes = np.append(self._codes, np.array(new, np.int32))
        return self._codes


class StepBuilder:
    """Builds the windows in which the moments of all ranks after one step are together.

    Attributes:
        catalog: of all ranks.
    """

    def __init__(self) -> None:
        self.catalog = Catalog()
        self._num_windows = 0
        self._sequence = 0

    def window(self, moments: Iterable[Moment]) -> Window:
        """Return the window of one step: for each rank its call, and a frame for each state."""
        catalog = self.catalog
        rows, frames = [], []
        for number, moment in enumerate(moments):
            begin = self._next()
            context = catalog.contexts.code(moment.context)
            frames += [
                Frame(
                    call=number,
                    phase=state.phase,
                    sequence=self._next(),
                    context=context,
                    variables=state.variables,
                    columns=state.columns,
                )
                for state in moment.states
            ]
            rows.append(
                (
                    *(number, NONE, catalog.apis.code(moment.api), NONE, begin, self._next()),
                    *(moment.begin_ns, moment.end_ns, context),
                    catalog.sources.code(moment.source) if moment.source else NONE,
                    *(NONE, NONE, NONE, 0),
                )
            )
        window = Window(
            index=self._num_windows, calls=Calls.from_rows(rows), frames=frames, catalog=catalog
        )
        self._num_windows += 1
        return window

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


class StepMerger:
    """Takes the windows of all ranks in any interleaving and gives the steps in order.

    A step is given as soon as every rank that goes on has passed it, with those that have it.

    Args:
        ranks: that are to be waited for.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self._builder = StepBuilder()
        self._readers = {rank: MomentReader(self._builder.catalog) for rank in ranks}
        self._positions: dict[int, float] = dict.fromkeys(self._readers, -math.inf)
        self._waiting: dict[int, dict[int, Moment]] = {}
        self._given = -1

    def add(self, rank: int, window: Window) -> list[Window]:
        """Take the next window of *rank*; return the steps that are complete."""
        moment = self._readers[rank].read(window)
        if moment is None:
            return []
        self._positions[rank] = max(self._positions[rank], moment.step)
        if moment.step > self._given:
            # What is read again after a resumption replaces what was seen before.
            self._waiting.setdefault(moment.step, {})[rank] = moment
        return self._complete()

    def finish(self, rank: int) -> list[Window]:
        """Wait no longer for *rank*, which has ended; return the steps that are complete."""
        self._positions[rank] = math.inf
        return self._complete()

    def behind(self, ranks: Iterable[int]) -> int:
        """Return which of *ranks* is furthest behind."""
        return min(ranks, key=lambda rank: self._positions[rank])

    def _complete(self) -> list[Window]:
        slowest = min(self._positions.values())
        done = sorted(step for step in self._waiting if step <= slowest)
        too_many = len(self._waiting) - len(done) - MAX_WAITING
        if too_many > 0:
            done += sorted(self._waiting.keys() - set(done))[:too_many]
        windows = []
        for step in done:
            self._given = step
            moments = self._waiting.pop(step)
            if len(moments) > 1:
                windows.append(self._builder.window(moments[rank] for rank in sorted(moments)))
        return windows


def interleaved(
    ranks: Mapping[int, Iterator[Window]], merger: StepMerger
) -> Iterator[tuple[int, list[Window]]]:
    """Read all ranks at once, always on with the one that is furthest behind.

    Args:
        ranks: the windows of each.
        merger: puts them side by side.

    Yields:
        A rank that was read on or has ended, and the steps of all ranks that this completes.
    """
    reading = dict(ranks)
    while reading:
        rank = merger.behind(reading)
        window = next(reading[rank], None)
        if window is None:
            del reading[rank]
            yield rank, merger.finish(rank)
        else:
            yield rank, merger.add(rank, window)


def steps_of(traces: Sequence[RankTrace]) -> Iterator[Window]:
    """Yield the training steps of all ranks together, in order."""
    windows = {trace.rank: iter(trace.windows()) for trace in traces}
    for _, steps in interleaved(windows, StepMerger(windows)):
        yield from steps
