"""Taking frames: the wanted attributes of all tracked variables, at one moment, as columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.events import ATTRIBUTES, NONE, Array, Catalog, Frame, Phase, Role
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.fingerprint import gradient_states, hash_tensor, norms
from traincheck_plugin.recorder.naming import Labels
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.variables import Structure, Tensors, Variables

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
        labels: Labels,
        variables: Variables,
        problems: Problems,
        next_sequence: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._labels = labels
        self._variables = variables
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
        """Take one frame for each kind of variable that *role* wants.

        Args:
            optimizer: the one that the call is about, if any.
        """
        frames = []
        with torch.no_grad():
            structure = self._variables.structure()
            chosen = [optimizer] if optimizer is not None and role in _OWN_OPTIMIZER else None
            for kind, names in self._wanted[role]:
                variables, columns = self._of_kind(kind, names, structure, optimizer, chosen)
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
        optimizer: Any | None,
        chosen: list[Any] | None,
    ) -> tuple[Array, Columns]:
        if kind == "parameter":
            tensors = structure.parameters
            return tensors.variables, self._parameter_columns(names, structure, optimizer)
        if kind == "buffer":
            alive = structure.buffers.alive() or []
            return structure.buffers.variables, self._state_columns(
                names, structure.buffers, alive
            )
        optimizers = self._variables.optimizers() if chosen is None else chosen
        if kind == "slot":
            table = Tensors([row for one in optimizers for row in self._variables.slots(one)])
            return table.variables, self._state_columns(names, table, table.alive() or [])
        if kind == "group":
            rows = [row for one in optimizers for row in self._variables.group_options(one)]
            codes = np.array([code for code, _ in rows], np.int32)
            return codes, _only("value", names, [value for _, value in rows])
        flags = [
            math.nan if (module := reference()) is None else float(module.training)
            for reference in structure.modules
        ]
        return structure.module_rows, _only("value", names, flags)

    def _state_columns(self, names: list[str], table: Tensors, alive: list[Tensor]) -> Columns:
        columns: Columns = {}
        for name in names:
            if name == "data":
                values: Sequence[Any] = [hash_tensor(t, self._problems) for t in alive]
            elif name == "data_norm":
                values = norms(alive)
            elif name == "dtype":
                values = [self._dtype(tensor) for tensor in alive]
            elif name == "requires_grad":
                values = [tensor.requires_grad for tensor in alive]
            else:
                continue
            columns[name] = table.spread(np.array(values, ATTRIBUTES[name]))
        return columns

    def _parameter_columns(
        self, names: list[str], structure: Structure, optimizer: Any | None
    ) -> Columns:
        table = structure.parameters
        alive = table.alive() or []
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
        present = [gradient for gradient in gradients if gradient is not None]
        euclidean: list[float] | None = None
        if "grad_norm" in names:
            found = iter(norms(present))
            euclidean = [math.nan if gradient is None else next(found) for gradient in gradients]
            columns["grad_norm"] = table.spread(np.array(euclidean, np.float64))
        if "grad" in names:
            states = gradient_states(gradients, euclidean)
            columns["grad"] = table.spread(np.array(states, np.int8))
        if "grad_hash" in names:
            hashes = [0 if g is None else hash_tensor(g, self._problems) for g in gradients]
            columns["grad_hash"] = table.spread(np.array(hashes, np.uint64))
        if "grad_dtype" in names:
            dtypes = [NONE if g is None else self._dtype(g) for g in gradients]
            columns["grad_dtype"] = table.spread(np.array(dtypes, np.int32))

    def _add_membership(
        self, columns: Columns, names: list[str], structure: Structure, optimizer: Any | None
    ) -> None:
        holder = np.full(len(structure.parameters.variables), NONE, np.int32)
        rate = np.full(len(holder), math.nan)
        # The calling optimizer comes last: where several hold a parameter, it is the one meant.
        for held in sorted(structure.holdings, key=lambda h: h.optimizer() is optimizer):
            instance = held.optimizer()
            if instance is None or not len(held.rows):
                continue
            holder[held.rows] = held.object
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
