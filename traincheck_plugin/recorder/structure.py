"""Which variables there are at one moment, and who holds them."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from traincheck_plugin.recorder.modes import acts
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.vocabulary import NONE, Array, Bool, Int32, Int64

Float64 = npt.NDArray[np.float64]


class Membership:
    """Which optimizer holds each parameter, and its learning rate.

    Attributes:
        holders: object codes, a value per row; `NONE` where no optimizer holds the parameter.
    """

    def __init__(self, num_rows: int) -> None:
        self.holders: Int32 = np.full(num_rows, NONE, np.int32)
        self._group_of_row: Int64 = np.zeros(num_rows, np.int64)
        self._optimizers: list[weakref.ref[Any]] = []
        self._num_groups = 1

    def add(self, optimizer: Any, code: int, rows: Int64, groups: Int64) -> None:
        """Let *optimizer* hold *rows*, in these of its param groups; the last one counts."""
        self.holders[rows] = code
        self._group_of_row[rows] = groups + self._num_groups
        self._optimizers.append(weakref.ref(optimizer))
        self._num_groups += len(optimizer.param_groups)

    def rates(self) -> Float64:
        """Return the present learning rate of each row, NaN where there is none."""
        rates = [math.nan]
        for reference in self._optimizers:
            optimizer = reference()
            if optimizer is None:
                raise ReferenceError("an optimizer went away while a frame was taken")
            rates += [_rate(group) for group in optimizer.param_groups]
        found: Float64 = np.array(rates)[self._group_of_row]
        return found


def _rate(group: dict[str, Any]) -> float:
    rate = group.get("lr")
    return math.nan if rate is None else float(rate)


def _flag_of(module: Any) -> Any:
    return vars(module).get("requires_grad")


class Structure:
    """A snapshot of which variables there are; `Variables.structure` keeps it up to date.

    Attributes:
        in_model: for each parameter, whether it is in a tracked model that ran; as long as none
            did, whether it is in any.
        placement: for each parameter, a `Placement`.
        parameter_modules: ids of the modules that have parameters; 0 stands for none.
        module_of_parameter: for each parameter, the place of its module among these.
        copies: the parameters of copies, under the variables of the models that they are copies of.
    """

    def __init__(self) -> None:
        self.identity: list[int] | None = None
        self.modules: list[weakref.ref[Any]] = []
        self.module_rows: Int32 = np.empty(0, np.int32)
        self.parameters = Tensors(())
        self.buffers = Tensors(())
        self.copies = Tensors(())
        self.in_model: Bool = np.empty(0, np.bool_)
        self.placement: Array = np.empty(0, np.int8)
        self.parameter_modules: list[int] = []
        self.module_of_parameter: Int64 = np.empty(0, np.int64)
        self.holdings: list[tuple[weakref.ref[Any], int, Int64, Int64]] = []
        self.names: dict[int, str] = {}
        self._memberships: dict[int, Membership] = {}
        self._acting: list[float] | None = None

    def membership(self, optimizer: Any | None) -> Membership:
        """Return who holds what; where several hold a parameter, *optimizer* is the one meant."""
        known = self._memberships.get(id(optimizer))
        if known is None:
            known = self._memberships[id(optimizer)] = Membership(len(self.in_model))
            for holding in sorted(self.holdings, key=lambda holding: holding[0]() is optimizer):
                holder = holding[0]()
                if holder is not None:
                    known.add(holder, *holding[1:])
        return known

    def is_alive(self) -> bool:
        """Return whether everything in it still exists."""
        return (
            self.parameters.are_alive()
            and self.buffers.are_alive()
            and self.copies.are_alive()
            and all(holding[0]() is not None for holding in self.holdings)
        )

    def told_by_modules(self) -> dict[int, bool]:
        """Return what modules say of whether parameters require gradients, by ids of these.

        An attribute ``requires_grad`` that is set on a module is none of its parameters. There is
        hardly ever one.
        """
        modules = [module for reference in self.modules if (module := reference()) is not None]
        telling = [module for module in modules if type(_flag_of(module)) is bool]
        # Roots come first, so that the innermost has the last word.
        return {id(p): _flag_of(module) for module in telling for p in module.parameters()}

    def training_flags(self) -> list[float]:
        """Return 1 for each module in training mode, 0 for the others."""
        modules = (reference() for reference in self.modules)
        return [math.nan if m is None else float(m.training) for m in modules]

    def acting(self) -> list[float]:
        """Return 1 for each module that acts otherwise in training mode, 0 for the others."""
        if self._acting is None:
            modules = (reference() for reference in self.modules)
            self._acting = [float(m is not None and acts(m)) for m in modules]
        return self._acting
