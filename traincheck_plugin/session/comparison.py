"""Compares what the ranks of a live run have, at steps that all of them know, beside the training.

What a comparison costs a rank does not grow with the number of ranks: the least and the greatest
fingerprint of each variable, by one reduction. Only where a variable begins to differ, each rank
tells 8 bytes for each kind of variable, so that the minority can be named.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch.distributed as dist
import xxhash

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.checker.ranks import Moment, MomentReader, State, StepBuilder
from traincheck_plugin.events import Window
from traincheck_plugin.recorder.layout import read_layout
from traincheck_plugin.recorder.sampling import Sampling, first_compared, next_compared
from traincheck_plugin.session.peers import Peers, are_there
from traincheck_plugin.vocabulary import Array, Bool, Int64, Placement

CLOSE_SECONDS = 10.0
"""How long the end of a run may wait for the last comparisons."""

MAX_KEPT = 64
"""With more ranks, what tells them apart is only used at the step at which a difference begins."""

_FAMILIES = ("gradient", "parameter", "slot", "buffer", "group", "input", "generator")
_VALUES = ("data", "value", "grad_norm")


class Comparison:
    """Takes the windows of one rank, and gives the steps in which all ranks are side by side.

    Of a training that is distributed in more ways than one, all ranks that are data-parallel
    replicas of this one, where that is known. A thread of its own waits for the other ranks. A rank
    that stops or is lost ends the comparison and nothing else.

    Args:
        prefix: of the keys in the store; the same on all ranks.
        sampling: tells which steps are compared.
        first_step: with which the run begins.
    """

    def __init__(self, prefix: str, sampling: Sampling, first_step: int) -> None:
        self._prefix = prefix
        self._sampling = sampling
        self._next = first_compared(first_step, sampling)
        self._builder = StepBuilder()
        self._reader = MomentReader(self._builder.catalog)
        self._tasks: queue.SimpleQueue[Moment | int | None] = queue.SimpleQueue()
        self._steps: queue.SimpleQueue[Window] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._peers: Peers | None = None
        self._problem = ""
        self._ending = "finished"

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the ranks were not compared to the end, if they were not."""
        return (self._problem,) if self._problem else ()

    def write(self, window: Window) -> None:
        """Take the next window of this rank."""
        moment = self._reader.read(window) if window.observed else None
        if moment is None or self._problem:
            return
        if self._thread is None and not self._start(moment.step):
            return
        # Of steps that were left out here the others must not wait for more.
        while self._next < moment.step:
            self._tasks.put(self._next)
            self._next = next_compared(self._next, self._sampling)
        if self._next == moment.step:
            self._tasks.put(moment)
            self._next = next_compared(self._next, self._sampling)

    def steps(self) -> Iterator[Window]:
        """Yield the steps of all ranks that have been compared since the last call."""
        while not self._steps.empty():
            yield self._steps.get()

    def close(self, how: str) -> None:
        """Finish the comparisons that were begun, for some seconds, and part from the others.

        Args:
            how: this rank ended.
        """
        if self._thread is None:
            return
        self._ending = how
        self._tasks.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._problem = (
                "the comparison of ranks ended early: another rank did not answer within "
                f"{CLOSE_SECONDS:g} s of the end of this one"
            )

    def _start(self, step: int) -> bool:
        if not are_there():
            return False
        while self._next < step:
            self._next = next_compared(self._next, self._sampling)
        layout = read_layout()
        if layout.num_data == 1:
            # No other rank is a replica of this one.
            return False
        try:
            self._peers = (
                Peers(self._prefix, dist.get_rank(), dist.get_world_size())
                if layout.data < 0
                else Peers(
                    f"{self._prefix}{layout.tensor}.{layout.pipeline}/",
                    layout.data,
                    layout.num_data,
                )
            )
        except RuntimeError as error:
            self._problem = f"the ranks are not compared: {error}"
            return False
        self._thread = threading.Thread(
            target=self._run, args=(self._peers,), name="traincheck-ranks", daemon=True
        )
        self._thread.start()
        return True

    def _run(self, peers: Peers) -> None:
        step = self._next
        try:
            peers.join()
            comparer = Comparer(peers, self._builder)
            while (task := self._tasks.get()) is not None:
                step = task if isinstance(task, int) else task.step
                window = comparer.compare(step, None if isinstance(task, int) else task)
                if window is not None:
                    self._steps.put(window)
            peers.leave(self._ending)
        except Exception as error:  # noqa: BLE001  # the training goes on, and is to be told
            self._problem = _ended(peers, step, error)


def _ended(peers: Peers, step: int, error: Exception) -> str:
    """Return why the comparison ended; "" where others simply had fewer steps."""
    left: dict[int, str] = {}
    try:
        left = peers.those_who_left()
        peers.leave("lost the others")
    except Exception as failure:  # noqa: BLE001  # the store went away with the process that had it
        error.add_note(str(failure))
    if left and all(how == "finished" for how in left.values()):
        return ""
    who = "; ".join(f"rank {r}: {how}" for r, how in left.items() if how != "finished")
    lost = " ".join(str(error).split()).partition(". ")[0]
    return f"the comparison of ranks ended before step {step}: {who or f'a rank was lost ({lost})'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The variables of one rank in the order of their keys, which is the same on all ranks.

    Attributes:
        keys: tell variable, attribute and placement, in any process.
        states: which state of the moment each row is from.
        rows: which row of that state.
    """

    keys: Array
    states: Array
    rows: Array
    digest: int


class Comparer:
    """Compares one step after the other; all ranks call it with the same steps."""

    def __init__(self, peers: Peers, builder: StepBuilder) -> None:
        self._peers = peers
        self._builder = builder
        self._keys = _Keys(builder.catalog)
        self._known: Array = np.empty(0, np.uint64)
        self._last: tuple[int, dict[int, list[int]]] = 0, {}

    def compare(self, step: int, moment: Moment | None) -> Window | None:
        """Return the step of all ranks; None where some rank did not observe it."""
        table = self._keys.table(moment) if moment is not None else None
        own = [step, 0, 0] if table is None else [step, len(table.keys), table.digest]
        low, high = self._peers.spread(np.array(own, np.int64))
        if low[0] != high[0]:
            raise RuntimeError(f"the ranks are at different steps: {low[0]} and {high[0]}")
        if low[1] == 0 or table is None or moment is None:
            return None
        chosen = self._chosen(table, low, high)
        values = _values(moment, table)[chosen]
        if not len(values):
            return None
        least, greatest = self._peers.spread(values)
        differs = least != greatest
        keys = table.keys[chosen]
        table = replace(table, keys=keys, states=table.states[chosen], rows=table.rows[chosen])
        told = self._told(moment, table, values, differs)
        return self._builder.window(self._moments(moment, table, least, greatest, differs, told))

    def _chosen(self, table: _Table, low: Int64, high: Int64) -> Bool:
        """Return which rows all ranks have."""
        if (low[1:] == high[1:]).all():
            return np.ones(len(table.keys), np.bool_)
        # Every rank sees the same bounds, but they do not tell who changed: ask each time anew.
        length = int(high[1])
        padded = np.zeros(length, np.uint64)
        padded[: len(table.keys)] = table.keys
        chosen = np.ones(len(table.keys), np.bool_)
        for keys in self._peers.gathered(padded):
            chosen &= np.isin(table.keys, keys.view(np.uint64))
        return chosen

    def _told(
        self, moment: Moment, table: _Table, values: Array, differs: Bool
    ) -> dict[int, list[int]]:
        """Return, for each state that differs, what tells the ranks apart in it, if it is known.

        It is asked for when variables begin to differ, and kept where it costs little to go on.
        """
        keeps = self._peers.size <= MAX_KEPT and self._last[0] == table.digest
        told = dict(self._last[1]) if keeps else {}
        new = differs & ~np.isin(table.keys, self._known) & ~_local(moment, table)
        self._known = np.union1d(self._known, table.keys[differs])
        if not new.any():
            return told
        # One number for each kind of variable, in an order that is the same on all ranks.
        families = [self._family(state) for state in moment.states]
        of_row = np.array(families)[table.states]
        digests = np.zeros(len(_FAMILIES), np.uint64)
        for family in np.unique(of_row[new]):
            rows = new & (of_row == family)
            digests[family] = xxhash.xxh3_64_intdigest(values[rows].tobytes())
        gathered = self._peers.gathered(digests)
        told |= {
            state: [int(one.view(np.uint64)[family]) for one in gathered]
            for state, family in enumerate(families)
            if digests[family]
        }
        self._last = table.digest, told
        return told

    def _family(self, state: State) -> int:
        if "grad_norm" in state.columns:
            return _FAMILIES.index("gradient")
        return _FAMILIES.index(self._builder.catalog.variables[int(state.variables[0])].kind)

    def _moments(
        self,
        moment: Moment,
        table: _Table,
        least: Int64,
        greatest: Int64,
        differs: Bool,
        told: dict[int, list[int]],
    ) -> Iterator[Moment]:
        """Yield what the ranks have: two of them all of it, the others what began to differ."""
        witnesses = [self._peers.rank, (self._peers.rank + 1) % self._peers.size]
        for rank in range(self._peers.size):
            is_witness = rank in witnesses
            if not (is_witness or told):
                continue
            states = []
            for number, state in enumerate(moment.states):
                mine = table.states == number
                values = least if rank == witnesses[0] else greatest
                if number in told:
                    values = np.where(differs, np.uint64(told[number][rank]).view(np.int64), least)
                if not is_witness:
                    mine = mine & differs if number in told else np.zeros_like(mine)
                if not mine.any():
                    continue
                rows = table.rows[mine]
                columns = {
                    name: values[mine].view(column.dtype) if name in _VALUES else column[rows]
                    for name, column in state.columns.items()
                }
                states.append(
                    State(phase=state.phase, variables=state.variables[rows], columns=columns)
                )
            yield replace(
                moment,
                context=replace(moment.context, rank=self._peers.ranks[rank]),
                states=tuple(states),
            )


class _Keys:
    """Numbers for variables that are the same in all processes."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._keys: dict[tuple[int, str, int], int] = {}
        self._tables: tuple[list[bytes], _Table] | None = None

    def table(self, moment: Moment) -> _Table:
        """Return the rows of *moment* that are compared."""
        identity = [
            state.variables.tobytes() + state.columns.get("placement", _NO_PLACEMENT).tobytes()
            for state in moment.states
        ]
        if self._tables is not None and self._tables[0] == identity:
            return self._tables[1]
        keys, states, rows = [], [], []
        for number, state in enumerate(moment.states):
            [name] = [name for name in _VALUES if name in state.columns]
            placement = state.columns.get("placement")
            for row, code in enumerate(state.variables):
                mark = int(placement[row]) if placement is not None else 0
                keys.append(self._key(int(code), name, mark))
                states.append(number)
                rows.append(row)
        unique, order = np.unique(np.array(keys, np.uint64), return_index=True)
        table = _Table(
            keys=unique,
            states=np.array(states, np.int64)[order],
            rows=np.array(rows, np.int64)[order],
            digest=xxhash.xxh3_64_intdigest(unique.tobytes()) >> 1,
        )
        self._tables = identity, table
        return table

    def _key(self, code: int, name: str, placement: int) -> int:
        key = self._keys.get((code, name, placement))
        if key is None:
            v = self._catalog.variables[code]
            text = repr((v.kind, v.name, v.owner, v.shape, name, placement))
            key = self._keys[code, name, placement] = xxhash.xxh3_64_intdigest(text.encode())
        return key


_NO_PLACEMENT = np.empty(0, np.int8)


def _values(moment: Moment, table: _Table) -> Array:
    """Return the 64 bits of each row of *table*."""
    values = np.empty(len(table.keys), np.uint64)
    for number, state in enumerate(moment.states):
        mine = table.states == number
        [name] = [name for name in _VALUES if name in state.columns]
        values[mine] = state.columns[name].view(np.uint64)[table.rows[mine]]
    return values


def _local(moment: Moment, table: _Table) -> Bool:
    local = np.zeros(len(table.keys), np.bool_)
    for number, state in enumerate(moment.states):
        placement = state.columns.get("placement")
        if placement is not None:
            mine = table.states == number
            local[mine] = placement[table.rows[mine]] == Placement.LOCAL
    return local
