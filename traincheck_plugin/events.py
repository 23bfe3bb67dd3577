"""What happens in a training run, as data: calls, frames and windows.

Everything that repeats (an API, a variable, a place in the source, the summary of some arguments)
is interned once per process in a `Catalog`; calls and frames are columns of small integers over
it. A `Window` is the unit that flows from the recorder or a trace through inference and checking.

All begins, ends and frames of a process are numbered by one counter, the *sequence*: it orders
them totally, which clock readings do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.vocabulary import Array, Int32, Int64, Phase, Role, VariableKind

CALL_COLUMNS: Mapping[str, Any] = {
    "call": np.int64,
    "parent": np.int64,
    "api": np.int32,
    "object": np.int32,
    "begin": np.int64,
    "end": np.int64,
    "begin_ns": np.int64,
    "end_ns": np.int64,
    "context": np.int32,
    "source": np.int32,
    "inputs": np.int32,
    "outputs": np.int32,
    "exception": np.int32,
    "thread": np.int32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """The calls of a window as columns of equal length, ordered by their end.

    Attributes:
        call, parent: numbers unique in the process; parent `NONE` for outermost calls.
        api, object, context, source, inputs, outputs, exception: codes into the catalog.
        begin, end: sequence numbers.
        begin_ns, end_ns: nanoseconds since the start of the recording.
        thread: small number of the thread, 0 for the main thread.
    """

    call: Int64
    parent: Int64
    api: Int32
    object: Int32
    begin: Int64
    end: Int64
    begin_ns: Int64
    end_ns: Int64
    context: Int32
    source: Int32
    inputs: Int32
    outputs: Int32
    exception: Int32
    thread: Int32

    def __len__(self) -> int:
        return len(self.call)

    def part(self, rows: slice) -> Calls:
        """Return some of the calls."""
        return Calls(**{name: getattr(self, name)[rows] for name in CALL_COLUMNS})

    @classmethod
    def join(cls, parts: Sequence[Calls]) -> Calls:
        """Return the calls of all *parts*, in a row."""
        return cls(
            **{name: np.concatenate([getattr(p, name) for p in parts]) for name in CALL_COLUMNS}
        )

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[int, ...]]) -> Calls:
        """Build from tuples in the order of `CALL_COLUMNS`."""
        columns = zip(*rows, strict=True) if rows else ((),) * len(CALL_COLUMNS)
        return cls(
            **{
                name: np.array(column, dtype)
                for (name, dtype), column in zip(CALL_COLUMNS.items(), columns, strict=True)
            }
        )


NOT_RUN = -1
RUN_WITHOUT_GRADIENTS = -2
"""What `ran` is of the parameters of a module that did not run, or only under `no_grad`."""

LOADER_FACTS = ("shuffles", "samples", "batch_size", "start", "batch", "epoch", "indices")
"""What is told of a data loader with each batch; NaN where it is not known.

shuffles: whether its sampler gives another order each time (1 or 0). samples: of the dataset, or of
this rank's part. batch_size: asked for. start: how often it was started before. batch: how many
batches it delivered since. epoch: what its sampler was told by ``set_epoch``.
"""

ATTRIBUTES: Mapping[str, Any] = {
    "data": np.uint64,
    "data_norm": np.float64,
    "grad": np.int8,
    "grad_hash": np.uint64,
    "grad_norm": np.float64,
    "requires_grad": np.bool_,
    "module_requires_grad": np.bool_,
    "in_model": np.bool_,
    "optimizer": np.int32,
    "lr": np.float64,
    "dtype": np.int32,
    "grad_dtype": np.int32,
    "value": np.float64,
    "placement": np.int8,
    "ran": np.int32,
    "copy": np.uint64,
    "alike": np.bool_,
    "shared": np.bool_,
    "lowest": np.float64,
    "highest": np.float64,
    "negative": np.float64,
    "length": np.float64,
    "number": np.float64,
}
"""Attributes of variables and how a frame stores them.

data: 64-bit hash of the exact bits (parameters, buffers, slots, generators; of large batches and
inputs, of some slices of them). data_norm: Euclidean norm of the
parameters that the call leaves as they are; of others it may be NaN. grad_norm: Euclidean norm.
module_requires_grad: what the innermost module around a parameter that has an attribute
``requires_grad`` says by it; without one, as requires_grad. grad: a `GradState`; without grad_norm,
`NON_FINITE` may show as `NON_ZERO`. grad_hash: as data, 0 where the gradient is None. in_model:
whether a tracked model that ran has the parameter now. optimizer: object code of the optimizer that
holds it, or `NONE`. lr: learning rate of its param group, NaN in none. dtype, grad_dtype: codes
into `Catalog.strings`, `NONE` where there is none.
value: a scalar (an option of a param group; a module's training flag as 0 or 1; the number of
elements of a batch or an input; a fact about a loader; how many places after an element of a
target the same is in the input, `NOWHERE` where it is not there, NaN where that is not known; the
share of padding of which the targets count, NaN likewise; whether reading a batch changed what a
data set stores; the mode of an evaluation).
placement: a `Placement`. ran: the place of its module in the order in which modules last ran with
gradients since the optimizer stepped last, or was made, counted from 0; else `NOT_RUN` or
`RUN_WITHOUT_GRADIENTS`. copy: as data, of the parameter of the same name in copies of the model
that no optimizer holds; in a frame of its own, with a row for each parameter of each copy. alike:
whether it has several rows of several numbers, and all are the same; told when an optimizer steps
for the second time, where those of its gradient are, too, and for the fifth. shared: whether the
memory of another parameter begins where its own does; told with alike. lowest, highest: smallest
and largest finite value of a batch or an input (of large ones, of the slices that data is of); NaN
where there is none. negative: share of these values that is below zero, 0 to 1.
length: of the sequences that a module is given. number: of these sequences; 0 where there is a
single one that has no axis for others; of a module whether it acts otherwise in training mode, and
of an evaluation how many such parts it has in its mode.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Some attributes of all tracked variables of one kind at one moment.

    Attributes:
        call: the call at whose begin or end the frame was taken. The begin frame of a step with a
            closure is taken when the closure first returns: what the step itself changed is the
            difference between that and its end.
        phase: which of the two.
        sequence: when.
        context: code into the catalog.
        variables: codes into the catalog, one for each row.
        columns: attribute name to values, each as long as *variables*; see `ATTRIBUTES`.
    """

    call: int
    phase: Phase
    sequence: int
    context: int
    variables: Int32
    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.variables)


_NO_ROWS: Int64 = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Where each of the windows that one consists of begins.

    Attributes:
        indexes: their numbers.
        calls, frames: the first of each among those of all, and last the number of all.
    """

    indexes: Sequence[int]
    calls: Int64
    frames: Int64


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one optimizer step consists of, or a stretch of the run outside training steps.

    A window ends before the first call that belongs to the next batch; long stretches without a
    step are cut into windows of bounded size. Calls belong to the window in which they end.

    Windows in a row can be joined into one, a *stretch*, so that work is done once for all of
    them. One that was not observed stays alone.

    Attributes:
        index: number of the window in its process; of a stretch, that of its first.
        rank: global rank of the process.
        calls: the calls that ended in it.
        frames: in order of sequence.
        catalog: what the codes point into; grows as the run goes on.
        observed: False when sampling left this window out: its lifecycle calls are counted in the
            contexts but neither its calls nor its frames are complete.
        joint: of a stretch, which windows it consists of.
        cache: what was found out about it, by whoever wants to find it again.
    """

    index: int
    calls: Calls
    frames: Sequence[Frame]
    catalog: Catalog
    rank: int = 0
    observed: bool = True
    joint: Joint | None = field(default=None, repr=False, compare=False)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_parts(self) -> int:
        """How many windows it consists of."""
        return 1 if self.joint is None else len(self.joint.indexes)

    @property
    def parts(self) -> Iterator[Window]:
        """The windows it consists of, one by one."""
        return map(self.part, range(self.num_parts))

    def part(self, position: int) -> Window:
        """Return one of the windows it consists of."""
        if self.joint is None:
            return self
        key = Joint, position
        part: Window | None = self.cache.get(key)
        if part is None:
            rows = slice(*self.joint.calls[position : position + 2].tolist())
            frames = slice(*self.joint.frames[position : position + 2].tolist())
            part = self.cache[key] = Window(
                index=self.joint.indexes[position],
                rank=self.rank,
                calls=self.calls.part(rows),
                frames=self.frames[frames],
                catalog=self.catalog,
                observed=self.observed,
            )
        return part

    def position_of(self, rows: Int64) -> Int64:
        """Return in which of its windows each of these calls is."""
        if self.joint is None:
            return np.zeros(len(rows), np.int64)
        positions: Int64 = self._positions[rows]
        return positions

    @cached_property
    def _positions(self) -> Int64:
        lengths = [len(self.calls)] if self.joint is None else np.diff(self.joint.calls)
        return np.repeat(np.arange(self.num_parts), lengths)

    def at(self, row: int) -> tuple[Window, int]:
        """Return the window that a call is in, and its row there."""
        if self.joint is None:
            return self, row
        position = int(np.searchsorted(self.joint.calls, row, side="right")) - 1
        return self.part(position), row - int(self.joint.calls[position])

    def start_of(self, row: int) -> int:
        """Return the row of the first call of the window that a call is in."""
        if self.joint is None:
            return 0
        return int(self.joint.calls[np.searchsorted(self.joint.calls, row, side="right") - 1])

    @cached_property
    def frames_of_call(self) -> Mapping[int, Sequence[Frame]]:
        """Frames by the number of their call."""
        result: dict[int, list[Frame]] = {}
        for frame in self.frames:
            result.setdefault(frame.call, []).append(frame)
        return result

    @cached_property
    def _rows_by_api(self) -> dict[int, Int64]:
        """The rows of the calls of each API, ascending, by its code."""
        api = self.calls.api
        if not len(api):
            return {}
        order = np.argsort(api, kind="stable")
        codes = api[order]
        starts = [0, *(np.flatnonzero(codes[1:] != codes[:-1]) + 1).tolist()]
        stops = [*starts[1:], len(order)]
        rows = (order[start:stop] for start, stop in zip(starts, stops, strict=True))
        return dict(zip(codes[starts].tolist(), rows, strict=True))

    def rows_of_api(self, code: int) -> Int64:
        """Return the rows of `calls` whose API is *code*, ascending."""
        return self._rows_by_api.get(code, _NO_ROWS)

    def rows_of_name(self, name: str) -> Int64:
        """Return the rows of `calls` whose API answers to *name*, ascending."""
        rows: Int64 | None = self.cache.get(name)
        if rows is None:
            rows = self.cache[name] = self._rows_of(self.catalog.apis_by_name(name))
        return rows

    def rows_of_role(self, role: Role) -> Int64:
        """Return the rows of `calls` whose API has this role, ascending."""
        key = "role", role
        rows: Int64 | None = self.cache.get(key)
        if rows is None:
            rows = self.cache[key] = self._rows_of(self.catalog.apis_by_role(role))
        return rows

    def _rows_of(self, codes: Set[int]) -> Int64:
        found = [rows for code, rows in self._rows_by_api.items() if code in codes]
        if len(found) > 1:
            return np.sort(np.concatenate(found))
        return found[0] if found else _NO_ROWS

    @property
    def steps(self) -> set[int]:
        """The training steps in which optimizers stepped."""
        codes = self.calls.context[self.rows_of_role("step")]
        return set(self.catalog.contexts.column("step")[codes].tolist())

    @cached_property
    def api_codes(self) -> list[int]:
        """Codes of the APIs that were called, ascending."""
        return list(self._rows_by_api)

    def kind(self, frame: Frame) -> VariableKind | None:
        """Return the kind of the variables of *frame*, None for an empty one."""
        if not len(frame):
            return None
        return self.catalog.variables[int(frame.variables[0])].kind

    @cached_property
    def row_of_call(self) -> Mapping[int, int]:
        """Row of each call by its number."""
        return {int(call): row for row, call in enumerate(self.calls.call)}
