"""Taking frames: the wanted attributes of all tracked variables, at one moment, as columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.events import ATTRIBUTES, NONE, Array, Catalog, Frame, Phase, Role
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder import fingerprint
from traincheck_plugin.recorder.fingerprint import local
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.recorder.variables import Structure, Variables

Tensor = torch.Tensor
Columns = dict[str, Array]

_OWN_OPTIMIZER: frozenset[Role] = frozenset({"step", "zero_grad", "scheduler", "scaler"})
"""Roles whose slots and groups are those of one optimizer, not of all."""


class FrameTaker:
    """Takes the frames that a plan wants at the begin and end of calls."""

    def __init__(
        self,
        plan: Plan,
        catalog: Catalog,
        variables: Variables,
        readings: DeviceReadings,
        problems: Problems,
        next_sequence: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._variables = variables
        self._readings = readings
        self._problems = problems
        self._next = next_sequence
        self._dtypes: dict[torch.dtype, int] = {}
        self._wanted: dict[str, list[tuple[Any, list[str]]]] = {}
        for role in plan.attributes:
            kinds = sorted({kind for kind, _ in plan.attributes[role]})
            self._wanted[role] = [(kind, sorted(plan.wants(role, kind))) for kind in kinds]

    def wants(self, role: Role) -> bool:
        """Return whether calls of *role* get frames."""
        return bool(self._wanted.get(role))

    def take(
        self, role: Role, phase: Phase, call: int, context: int, optimizer: Any | None
    ) -> list[Frame]:
        """Take one frame for each kind of variable that *role* wants and of which there are any.

        Args:
            role: of the call.
            phase: whether the call begins or ends.
            call: its number.
            context: its context.
            optimizer: the one that it is about, if any.
        """
        frames = []
        with torch.no_grad():
            structure = self._variables.structure()
            for kind, names in self._wanted[role]:
                variables, columns = self._of_kind(kind, names, structure, role, optimizer)
                if not len(variables):
                    continue
                frames.append(
                    Frame(
                        call=call,
                        phase=phase,
                        sequence=self._next(),
                        context=context,
                        variables=variables,
                        columns=columns,
                    )
                )
        return frames

    def _of_kind(
        self,
        kind: str,
        names: list[str],
        structure: Structure,
        role: Role,
        optimizer: Any | None,
    ) -> tuple[Array, Columns]:
        if kind == "parameter":
            columns = self._parameter_columns(names, structure, optimizer)
            return structure.parameters.variables, columns
        if kind == "buffer":
            buffers = structure.buffers
            return buffers.variables, self._state_columns(names, buffers, buffers.alive())
        if kind == "module":
            return structure.module_rows, _only("value", names, structure.training_flags())
        if optimizer is not None and role in _OWN_OPTIMIZER:
            optimizers = [optimizer]
        else:
            optimizers = self._variables.optimizers()
        if kind == "slot":
            table = self._variables.slots(optimizers)
            return table.variables, self._state_columns(names, table, table.alive())
        rows = [row for one in optimizers for row in self._variables.group_options(one)]
        codes = np.array([code for code, _ in rows], np.int32)
        return codes, _only("value", names, [value for _, value in rows])

    def _state_columns(self, names: list[str], table: Tensors, alive: list[Tensor]) -> Columns:
        columns: Columns = {}
        rows = range(len(alive))
        for name in names:
            if name == "data":
                columns[name] = self._hashes(table, rows, alive, table.memories)
            elif name == "data_norm":
                columns[name] = self._norms(table, rows, alive)[0]
            elif name == "dtype":
                dtypes = [self._dtype(tensor) for tensor in alive]
                columns[name] = table.spread(np.array(dtypes, np.int32))
            elif name == "requires_grad":
                flags = [tensor.requires_grad for tensor in alive]
                columns[name] = table.spread(np.array(flags, np.bool_))
        return columns

    def _parameter_columns(
        self, names: list[str], structure: Structure, optimizer: Any | None
    ) -> Columns:
        table = structure.parameters
        alive = table.alive()
        columns = self._state_columns(names, table, alive)
        if any(name.startswith("grad") for name in names):
            self._add_gradient_columns(columns, names, table, [tensor.grad for tensor in alive])
        if "in_model" in names:
            columns["in_model"] = structure.in_model
        if "optimizer" in names or "lr" in names:
            self._add_membership(columns, names, structure, optimizer)
        return columns

    def _add_gradient_columns(
        self, columns: Columns, names: list[str], table: Tensors, gradients: list[Tensor | None]
    ) -> None:
        rows = [row for row, gradient in enumerate(gradients) if gradient is not None]
        present = [gradient for gradient in gradients if gradient is not None]
        euclidean: list[float] | None = None
        if "grad_norm" in names:
            columns["grad_norm"], euclidean = self._norms(table, rows, present, math.nan)
        if "grad" in names:
            columns["grad"] = self._read(
                table,
                rows,
                present,
                np.int8,
                lambda tensors: fingerprint.gradient_states(tensors, euclidean),
                lambda tensors: fingerprint.device_norms(tensors, math.inf),
                fingerprint.states_of,
            )
        if "grad_hash" in names:
            columns["grad_hash"] = self._hashes(table, rows, present, [])
        if "grad_dtype" in names:
            dtypes = [NONE if g is None else self._dtype(g) for g in gradients]
            columns["grad_dtype"] = table.spread(np.array(dtypes, np.int32))

    def _hashes(
        self,
        table: Tensors,
        rows: Sequence[int],
        tensors: list[Tensor],
        memories: list[fingerprint.Memory | None],
    ) -> Array:
        problems = self._problems
        seeds: list[Array] = []

        def on_host(here: list[Tensor]) -> list[int]:
            if len(memories) == len(here):
                return fingerprint.hash_all(here, memories, problems)
            return [fingerprint.hash_tensor(tensor, problems) for tensor in here]

        def on_device(there: list[Tensor]) -> Tensor:
            seeds.append(fingerprint.hash_seeds(there))
            return fingerprint.device_hashes(there)

        return self._read(
            table,
            rows,
            tensors,
            np.uint64,
            on_host,
            on_device,
            lambda sums: fingerprint.finished_hashes(sums, seeds.pop(0)),
        )

    def _norms(
        self, table: Tensors, rows: Sequence[int], tensors: list[Tensor], missing: float = 0.0
    ) -> tuple[Array, list[float] | None]:
        found: list[list[float]] = []

        def on_host(here: list[Tensor]) -> list[float]:
            found.append(fingerprint.norms(here))
            return found[0]

        column = self._read(
            table, rows, tensors, np.float64, on_host, fingerprint.device_norms, missing=missing
        )
        return column, found[0] if found else None

    def _read(
        self,
        table: Tensors,
        rows: Sequence[int],
        tensors: list[Tensor],
        dtype: Any,
        on_host: Callable[[list[Tensor]], Sequence[Any]],
        on_device: Callable[[list[Tensor]], Tensor],
        finish: Callable[[Array], Array] = lambda values: values,
        missing: float = 0,
    ) -> Array:
        """Return a column with a number per tensor; those on a device arrive later, in place.

        Args:
            table: the tensors' variables.
            rows: the place of each of *tensors* in the table.
            tensors: what to read.
            dtype: of the column.
            on_host: reads tensors on the CPU.
            on_device: computes a vector for tensors on one device.
            finish: turns the numbers of that vector into values.
            missing: the value of tensors that are not read.
        """
        values = np.full(table.num_tensors, missing, dtype)
        elsewhere: dict[torch.device, list[int]] = {}
        tensors = [local(tensor) for tensor in tensors]
        if all(tensor.is_cpu for tensor in tensors):
            values[rows] = on_host(tensors)
            return table.spread(values)  # type: ignore[no-any-return]
        for place, tensor in enumerate(tensors):
            elsewhere.setdefault(tensor.device, []).append(place)
        column = table.spread(values.copy())
        for device, places in elsewhere.items():
            there = [tensors[place] for place in places]
            at = [rows[place] for place in places]
            if device.type == "cpu":
                values[at] = on_host(there)
            elif device.type == "meta":
                self._problems.note("tensors on the meta device have no values to observe")
            elif device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                self._problems.note(
                    "nothing is read from the device while a CUDA graph is captured"
                )
            else:

                def receive(numbers: Array, at: list[int] = at) -> None:
                    values[at] = finish(numbers)
                    column[:] = table.spread(values)

                self._readings.add(on_device(there), receive)
        column[:] = table.spread(values)
        return column  # type: ignore[no-any-return]

    def _add_membership(
        self, columns: Columns, names: list[str], structure: Structure, optimizer: Any | None
    ) -> None:
        holder = np.full(len(structure.in_model), NONE, np.int32)
        rate = np.full(len(holder), math.nan)
        # The calling optimizer comes last: where several hold a parameter, it is the one meant.
        for held in sorted(structure.holdings, key=lambda h: h.optimizer() is optimizer):
            instance = held.optimizer()
            if instance is None or not len(held.rows):
                continue
            holder[held.rows] = held.code
            if "lr" in names:
                rates = np.array([_rate(group) for group in instance.param_groups])
                rate[held.rows] = rates[held.groups]
        if "optimizer" in names:
            columns["optimizer"] = holder
        if "lr" in names:
            columns["lr"] = rate

    def _dtype(self, tensor: Tensor) -> int:
        code = self._dtypes.get(tensor.dtype)
        if code is None:
            code = self._dtypes[tensor.dtype] = self._catalog.strings.code(str(tensor.dtype))
        return code


def _rate(group: dict[str, Any]) -> float:
    rate = group.get("lr")
    return math.nan if rate is None else float(rate)


def _only(name: str, names: list[str], values: list[float]) -> Columns:
    return {name: np.array(values, ATTRIBUTES[name])} if name in names else {}
