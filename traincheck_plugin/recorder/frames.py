"""Taking frames: the wanted attributes of all tracked variables, at one moment, as columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import ATTRIBUTES, Frame
from traincheck_plugin.plan import CHANGE, Plan
from traincheck_plugin.recorder.columns import (
    Columns,
    DeviceReader,
    HostReader,
    RestingNorms,
)
from traincheck_plugin.recorder.movement import Movements
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.runs import ModuleRuns
from traincheck_plugin.recorder.structure import Structure
from traincheck_plugin.recorder.symmetry import SymmetryReader, shared
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.recorder.variables import Variables
from traincheck_plugin.vocabulary import NONE, PASSING, Array, Phase, Role

Tensor = torch.Tensor

_OWN_OPTIMIZER: frozenset[Role] = frozenset({"step", "zero_grad", "scheduler", "scaler"})
"""Roles whose slots and groups are those of one optimizer, not of all."""

_REPLACING: frozenset[Role] = frozenset({"checkpoint", "forward", "framework", "instrumented"})
"""Roles whose calls may replace variables: the end frame may have others than the begin frame."""

_EARLY = frozenset({"alike", "shared"})
"""What is told in a few steps, which `SymmetryReader` chooses."""

_MET = _EARLY | {"data_norm", "dtype", "grad_dtype", "grad_norm", "module_requires_grad", "ran"}
"""What a step meets, and its end frame does not tell again."""

_requires_grad: Callable[[Tensor], bool] = attrgetter("requires_grad")
_GRADIENT_NAMES = frozenset({"grad", "grad_norm", "grad_hash", "grad_dtype"})


class _Moment(NamedTuple):
    """The begin or end of a call about an optimizer."""

    call: int
    phase: Phase
    optimizer: Any


class FrameTaker:
    """Takes the frames that a plan wants at the begin and end of calls."""

    def __init__(
        self,
        plan: Plan,
        catalog: Catalog,
        variables: Variables,
        readings: DeviceReadings,
        problems: Problems,
        runs: ModuleRuns,
        next_sequence: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._variables = variables
        self._runs = runs
        self._host = HostReader(problems)
        self._device = DeviceReader(problems, readings)
        self._resting = RestingNorms()
        self._symmetry = SymmetryReader(readings)
        self._next = next_sequence
        self._dtypes: dict[torch.dtype | None, int] = {None: NONE}
        self._movements = Movements(problems)
        self._wanted: dict[str, list[tuple[Any, list[str]]]] = {}
        for role in plan.attributes:
            kinds = sorted({kind for kind, _ in plan.attributes[role]} - PASSING)
            self._wanted[role] = [(kind, _names(plan.wants(role, kind))) for kind in kinds]

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
            is_fresh = phase == "begin" or role in _REPLACING
            structure = self._variables.structure(is_fresh=is_fresh)
            for kind, names in self._wanted[role]:
                if role == "step" and phase == "end":
                    names = [name for name in names if name not in _MET]
                elif not _EARLY.isdisjoint(names) and not self._symmetry.is_due(optimizer):
                    names = [name for name in names if name not in _EARLY]
                variables, columns = self._of_kind(
                    kind, names, structure, role, optimizer, _Moment(call, phase, optimizer)
                )
                if not len(variables):
                    continue
                frame = Frame(
                    call=call,
                    phase=phase,
                    sequence=self._next(),
                    context=context,
                    variables=variables,
                    columns=columns,
                )
                frames.append(frame)
                if "data_norm" in columns:
                    self._resting.begin(frame)
                elif phase == "end" and kind == "parameter" and "data" in columns:
                    self._resting.end(frame, structure.parameters)
                if (
                    phase == "begin"
                    and kind == "parameter"
                    and "copy" in names
                    and len(structure.copies.variables)
                ):
                    frames.append(self._of_copies(structure.copies, phase, call, context))
        return frames

    def _of_copies(self, copies: Tensors, phase: Phase, call: int, context: int) -> Frame:
        columns = self._state_columns(["data"], copies, copies.alive())
        return Frame(
            call=call,
            phase=phase,
            sequence=self._next(),
            context=context,
            variables=copies.variables,
            columns={"copy": columns["data"]},
        )

    def _of_kind(
        self,
        kind: str,
        names: list[str],
        structure: Structure,
        role: Role,
        optimizer: Any | None,
        moment: _Moment,
    ) -> tuple[Array, Columns]:
        if kind == "parameter":
            columns = self._parameter_columns(names, structure, optimizer, moment)
            return structure.parameters.variables, columns
        if kind == "buffer":
            buffers = structure.buffers
            return buffers.variables, self._state_columns(names, buffers, buffers.alive())
        if kind == "module":
            columns = _only("value", names, structure.training_flags())
            if "number" in names:
                columns |= _only("number", names, structure.acting())
            return structure.module_rows, columns
        if optimizer is not None and role in _OWN_OPTIMIZER:
            optimizers = [optimizer]
        else:
            optimizers = self._variables.optimizers()
        if kind == "slot":
            if CHANGE in names and len(optimizers) == 1:
                return self._changing_slots(names, optimizers[0], moment)
            table = self._variables.slots(optimizers)
            return table.variables, self._state_columns(names, table, table.alive())
        rows = [row for one in optimizers for row in self._variables.group_options(one)]
        codes = np.array([code for code, _ in rows], np.int32)
        return codes, _only("value", names, [value for _, value in rows])

    def _changing_slots(
        self, names: list[str], optimizer: Any, moment: _Moment
    ) -> tuple[Array, Columns]:
        """Read a few slots, and all of them where none of the few changed the time before."""
        few = self._movements.few(optimizer)
        if moment.phase == "begin":
            table = self._variables.slots([optimizer]) if few is None else few
            if table is not few:
                table.doubts(optimizer)[:] = True
            columns = self._state_columns(names, table, table.alive(), moment, "slot")
            return table.variables, columns
        movement = self._movements.end(moment.call, "slot")
        if movement is None:
            table = self._variables.slots([optimizer])
            return table.variables, self._state_columns(names, table, table.alive())
        table = movement.table
        column = movement.end(table, table.alive())
        moved = column != movement.column
        if table is not few:
            self._movements.choose(optimizer, table, moved)
        elif not moved.any():
            # That others did not change either is not known, so nothing is said.
            self._movements.look_at_all(optimizer)
            return np.empty(0, np.int32), {}
        return table.variables, {"data": column}

    def _state_columns(
        self,
        names: list[str],
        table: Tensors,
        alive: list[Tensor],
        moment: _Moment | None = None,
        kind: str = "parameter",
    ) -> Columns:
        columns: Columns = {}
        if CHANGE in names:
            column = self._movement(kind, table, alive, moment) if moment is not None else None
            if column is None:
                names = ["data", *names]
            else:
                columns["data"] = column
                if "data_norm" in names:
                    columns["data_norm"] = np.full(len(column), math.nan)
                    names = [name for name in names if name != "data_norm"]
        if {"data", "data_norm"}.isdisjoint(names):
            pass
        elif not self._host.read_data(columns, names, table, alive):
            self._device.read_data(columns, names, table, alive)
        if "dtype" in names:
            columns["dtype"] = table.spread(self._dtypes_of(alive))
        if "requires_grad" in names:
            flags = np.fromiter(map(_requires_grad, alive), np.bool_, len(alive))
            columns["requires_grad"] = table.spread(flags)
        return columns

    def _movement(
        self, kind: str, table: Tensors, alive: list[Tensor], moment: _Moment
    ) -> Array | None:
        if moment.phase == "begin":
            return self._movements.begin(moment.call, kind, table, alive, moment.optimizer)
        movement = self._movements.end(moment.call, kind)
        return None if movement is None else movement.end(table, alive)

    def _parameter_columns(
        self,
        names: list[str],
        structure: Structure,
        optimizer: Any | None,
        moment: _Moment,
    ) -> Columns:
        table = structure.parameters
        alive = table.alive()
        columns = self._state_columns(names, table, alive, moment)
        if not _GRADIENT_NAMES.isdisjoint(names):
            gradients = [tensor.grad for tensor in alive]
            if not self._host.read_gradients(columns, names, table, gradients):
                self._device.read_gradients(columns, names, table, gradients)
            if "grad_dtype" in names:
                columns["grad_dtype"] = table.spread(self._dtypes_of(gradients))
        if "module_requires_grad" in names:
            told = structure.told_by_modules()
            if not told and "requires_grad" in columns:
                columns["module_requires_grad"] = columns["requires_grad"]
            else:
                flags = [told.get(id(tensor), _requires_grad(tensor)) for tensor in alive]
                columns["module_requires_grad"] = table.spread(np.array(flags, np.bool_))
        if "alike" in names:
            columns["alike"] = self._symmetry.of(table, optimizer)
        if "shared" in names:
            columns["shared"] = table.spread(shared(alive))
        if "in_model" in names:
            columns["in_model"] = structure.in_model
        if "placement" in names:
            columns["placement"] = structure.placement
        if "ran" in names:
            places = self._runs.since_step(optimizer, structure.parameter_modules)
            columns["ran"] = places[structure.module_of_parameter]
        if "optimizer" in names or "lr" in names:
            membership = structure.membership(optimizer)
            if "optimizer" in names:
                columns["optimizer"] = membership.holders
            if "lr" in names:
                columns["lr"] = membership.rates()
        return columns

    def _dtypes_of(self, tensors: Sequence[Tensor | None]) -> Array:
        found = [None if tensor is None else tensor.dtype for tensor in tensors]
        codes = self._dtypes
        for dtype in set(found).difference(codes):
            codes[dtype] = self._catalog.strings.code(str(dtype))
        return np.fromiter(map(codes.__getitem__, found), np.int32, len(found))


def _names(wanted: frozenset[str]) -> list[str]:
    """Return attributes to read: a hash that is wanted tells changes as well."""
    return sorted(wanted - {CHANGE} if "data" in wanted else wanted)


def _only(name: str, names: list[str], values: list[float]) -> Columns:
    return {name: np.array(values, ATTRIBUTES[name])} if name in names else {}
