"""Columns of frames that are read off tensors: at once on the CPU, or later from a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.events import Frame
from traincheck_plugin.recorder import fingerprint
from traincheck_plugin.recorder.device_fingerprint import DeviceHasher, device_norms, states_of
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.vocabulary import Array, GradState, Int64

Tensor = torch.Tensor
Columns = dict[str, Array]


class HostReader:
    """Reads hashes, norms and states of ordinary tensors on the CPU; leaves others alone."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems

    def read_data(
        self, columns: Columns, names: Sequence[str], table: Tensors, tensors: list[Tensor]
    ) -> bool:
        """Add the columns among *names* about what the tensors hold; False if others are there."""
        batch = table.data
        try:
            if not batch.read(tensors):
                return False
            if "data" in names:
                columns["data"] = table.spread(batch.hashes(self._problems))
            if "data_norm" in names:
                # What `RestingNorms` fills in.
                columns["data_norm"] = np.full(len(table.variables), math.nan)
            return True
        finally:
            batch.release()

    def read_gradients(
        self,
        columns: Columns,
        names: Sequence[str],
        table: Tensors,
        gradients: list[Tensor | None],
    ) -> bool:
        """Add the columns among *names* about their gradients; False if others are there."""
        batch = table.gradients
        try:
            if not batch.read(gradients):
                return False
            euclidean = batch.norms() if "grad_norm" in names else None
            if "grad" in names:
                columns["grad"] = table.spread(batch.states(euclidean))
            if euclidean is not None:
                columns["grad_norm"] = table.spread(euclidean)
            if "grad_hash" in names:
                columns["grad_hash"] = table.spread(batch.hashes(self._problems))
            return True
        finally:
            batch.release()


class RestingNorms:
    """The norms of variables that a call left as they were, which tell whether it could move them.

    On the CPU a norm takes as long as all the rest, and hardly ever is anything left: so they are
    taken when the call ends, of what has not changed, and noted in the frame of its begin.
    """

    def __init__(self) -> None:
        self._begun: dict[int, Frame] = {}

    def begin(self, frame: Frame) -> None:
        """Note the frame at the begin of a call."""
        self._begun[frame.call] = frame
        if len(self._begun) > _MAX_OPEN:
            # A call that was withdrawn has no end.
            del self._begun[next(iter(self._begun))]

    def end(self, frame: Frame, table: Tensors) -> None:
        """Complete the frame at the begin of the call that ends with *frame*."""
        begin = self._begun.pop(frame.call, None)
        if begin is None or begin.variables is not frame.variables:
            return
        norms = begin.columns["data_norm"]
        at_rest = begin.columns["data"] == frame.columns["data"]
        # What a device reads has its norms, or gets them later.
        rows = np.flatnonzero(at_rest & np.isnan(norms))
        if len(rows):
            norms[rows] = self._norms(table, rows, frame.columns["data"])

    @staticmethod
    def _norms(table: Tensors, rows: Int64, hashes: Array) -> Array:
        """Return the norms of *rows*; those of tensors with the same bits as before are known."""
        known, norms = table.resting
        new = rows[known[rows] != hashes[rows]]
        if len(new):
            places = new if table.tensor_of_row is None else table.tensor_of_row[new]
            tensors = table.alive()
            norms[new] = fingerprint.norms([tensors[place] for place in places.tolist()])
            known[new] = hashes[new]
        found: Array = norms[rows]
        return found


_MAX_OPEN = 16


class DeviceReader:
    """Reads tensors of any kind on any device; numbers of a device arrive in the columns later.

    Attributes:
        HOST: the type of device whose tensors are read at once.
    """

    HOST = "cpu"

    def __init__(self, problems: Problems, readings: DeviceReadings) -> None:
        self._problems = problems
        self._readings = readings
        self._hasher = DeviceHasher()

    def read_data(
        self, columns: Columns, names: Sequence[str], table: Tensors, tensors: list[Tensor]
    ) -> None:
        """Add the columns among *names* about what the tensors hold."""
        places = range(len(tensors))
        if "data" in names:
            columns["data"] = self._hashes(table, places, tensors)
        if "data_norm" in names:
            columns["data_norm"] = self._norms(table, places, tensors)

    def read_gradients(
        self,
        columns: Columns,
        names: Sequence[str],
        table: Tensors,
        gradients: list[Tensor | None],
    ) -> None:
        """Add the columns among *names* about what their gradients hold."""
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        present = [gradient for gradient in gradients if gradient is not None]
        if "grad" in names:
            columns["grad"] = self._read(
                table,
                places,
                present,
                np.full(table.num_tensors, GradState.NULL, np.int8),
                lambda here: [fingerprint.gradient_state(gradient) for gradient in here],
                lambda there: (device_norms(there, math.inf), states_of),
            )
        if "grad_norm" in names:
            columns["grad_norm"] = self._norms(table, places, present)
        if "grad_hash" in names:
            columns["grad_hash"] = self._hashes(table, places, present)

    def _hashes(self, table: Tensors, places: Sequence[int], tensors: list[Tensor]) -> Array:
        return self._read(
            table,
            places,
            tensors,
            np.zeros(table.num_tensors, np.uint64),
            lambda here: [fingerprint.hash_tensor(tensor, self._problems) for tensor in here],
            self._hasher.hashes,
        )

    def _norms(self, table: Tensors, places: Sequence[int], tensors: list[Tensor]) -> Array:
        values = np.full(table.num_tensors, math.nan)
        return self._read(
            table,
            places,
            tensors,
            values,
            fingerprint.norms,
            lambda there: (device_norms(there), np.asarray),
        )

    def _read(
        self,
        table: Tensors,
        places: Sequence[int],
        tensors: list[Tensor],
        values: Array,
        on_host: Callable[[list[Tensor]], Sequence[Any]],
        on_device: Callable[[list[Tensor]], tuple[Tensor, Callable[[Array], Array]]],
    ) -> Array:
        """Return a column with a number per tensor.

        Args:
            table: the tensors' variables.
            places: where each of *tensors* stands in the table.
            tensors: what to read.
            values: the numbers of tensors that are not read; filled with those that are.
            on_host: reads tensors on the CPU.
            on_device: computes a vector for tensors on one device, and tells what makes values of
                its numbers.
        """
        by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
        for place, tensor in zip(places, tensors, strict=True):
            tensor = fingerprint.local(tensor)
            by_device.setdefault(tensor.device, []).append((place, tensor))
        column: Array = table.spread(values.copy())
        for device, pairs in by_device.items():
            at = [place for place, _ in pairs]
            there = [tensor for _, tensor in pairs]
            if device.type == self.HOST:
                values[at] = on_host(there)
            elif device.type == "meta":
                self._problems.note("tensors on the meta device have no values to observe")
            else:
                vector, finish = on_device(there)

                def receive(
                    numbers: Array,
                    at: list[int] = at,
                    finish: Callable[[Array], Array] = finish,
                ) -> None:
                    values[at] = finish(numbers)
                    column[:] = table.spread(values)

                self._readings.add(vector, receive)
        column[:] = table.spread(values)
        return column
