"""The variables that training changes: which there are, under which names, where they are now."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np
import torch

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.recorder.discovery import (
    Garbage,
    ModulesAlive,
    copies_of,
    models_of,
    unwrapped,
)
from traincheck_plugin.recorder.naming import Labels, class_path
from traincheck_plugin.recorder.placement import placements
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.signatures import sizes
from traincheck_plugin.recorder.structure import Structure
from traincheck_plugin.recorder.tables import Tensors
from traincheck_plugin.vocabulary import Variable, VariableKind

Module = torch.nn.Module
Optimizer = torch.optim.Optimizer
Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which models and variables to track.

    Attributes:
        model_names: names of variables of the user's code that hold the models; empty for every
            model that trains.
        discovers_models: whether models are looked for at all, besides those that are given.
        variables: patterns, as in a shell, of names of parameters and buffers; empty for all.
    """

    model_names: tuple[str, ...] = ()
    discovers_models: bool = True
    variables: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Return whether the parameter or buffer *name* is tracked."""
        return not self.variables or any(fnmatchcase(name, one) for one in self.variables)


class Variables:
    """The tracked models and known optimizers.

    Args:
        catalog: gets the variables.
        labels: names the objects.
        selection: which models and variables to track.
        problems: takes remarks.
        observes_copies: whether copies of models that train are looked for.

    Attributes:
        modules_alive: is told of every module that is made.
    """

    def __init__(
        self,
        catalog: Catalog,
        labels: Labels,
        selection: Selection,
        problems: Problems,
        *,
        observes_copies: bool = False,
    ) -> None:
        self.modules_alive = ModulesAlive()
        self._garbage = Garbage()
        self._selection = selection
        self._observes_copies = observes_copies
        self._catalog = catalog
        self._labels = labels
        self._names = selection.model_names
        self._problems = problems
        self._roots: list[weakref.ref[Any]] = []
        self._optimizers: list[weakref.ref[Any]] = []
        self._seen_modules: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_settled = False
        self._knows_copies = False
        self._copies: list[tuple[weakref.ref[Any], weakref.ref[Any]]] = []
        self._has_new_root = False
        self._structure = Structure()
        self._slots: dict[int, tuple[Structure, list[int], Tensors]] = {}
        self._group_codes: dict[tuple[int, int, str], int] = {}

    def roots(self) -> list[Any]:
        """Return the tracked models that are alive."""
        return [root for reference in self._roots if (root := reference()) is not None]

    def optimizers(self) -> list[Any]:
        """Return the known optimizers that are alive."""
        return [found for reference in self._optimizers if (found := reference()) is not None]

    def add_optimizer(self, optimizer: Any) -> None:
        """Learn of an optimizer and look for the models that own its parameters."""
        if any(reference() is optimizer for reference in self._optimizers):
            return
        self._optimizers = [r for r in self._optimizers if r() is not None]
        self._optimizers.append(weakref.ref(optimizer))
        self._knows_copies = False
        held = [p for group in optimizer.param_groups for p in group["params"]]
        known = {id(p) for root in self.roots() for p in root.parameters()}
        missing = [p for p in held if id(p) not in known]
        if missing and self._selection.discovers_models:
            for model in models_of(missing, (), self._names, self.modules_alive()):
                self.add_root(model)

    def add_forward(self, module: Any) -> None:
        """Learn of a module whose forward was called from outside any other forward."""
        if module in self._seen_modules:
            return
        self._seen_modules.add(module)
        module = unwrapped(module)
        self._seen_modules.add(module)
        # What ran is in a model that ran, from now on.
        self._structure.identity = None
        if not self._selection.discovers_models:
            return
        if any(inner is module for root in self.roots() for inner in root.modules()):
            return
        models = models_of((), (module,), self._names, self.modules_alive())
        if not models and not self._names:
            models = [module]
        for model in models:
            self.add_root(model)

    def add_stray(self, module: Any) -> None:
        """Learn of a module that ran within another to which it does not belong.

        It trains only if an optimizer knows its parameters; no model that ran has them.
        """
        if self._selection.discovers_models and not self._names:
            for model in models_of((), (module,), (), self.modules_alive()):
                self.add_root(model)

    def add_root(self, module: Any) -> None:
        """Track *module* unless tracked models have all its parameters already."""
        module = unwrapped(module)
        roots = self.roots()
        parts = set(module.modules())
        known = {inner for root in roots for inner in root.modules()}
        if module in known:
            return
        owned = {id(p) for root in roots for p in root.parameters()}
        own = [id(p) for p in module.parameters()]
        if own and all(key in owned for key in own):
            return
        self._roots = [weakref.ref(root) for root in roots if root not in parts]
        self._roots.append(weakref.ref(module))
        self._structure.identity = None
        self._knows_copies = False
        self._has_new_root = True

    def settle(self) -> None:
        """Once an optimizer has stepped: if no model goes by the given names, track what ran."""
        if self._is_settled:
            return
        self._is_settled = True
        if self._names and not self.roots():
            self._problems.note(
                f"no variable named {' or '.join(self._names)} holds a model that was trained: "
                "every root module is tracked instead"
            )
            self._names = ()
            for module in list(self._seen_modules):
                self.add_root(module)

    def find_copies(self) -> None:
        """Before an optimizer steps: see what there is besides the models that train."""
        wants = self._observes_copies and self._selection.discovers_models
        if self._knows_copies or not wants:
            return
        self._knows_copies = True
        held = {
            id(parameter)
            for optimizer in self.optimizers()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self._copies = [
            (weakref.ref(model), weakref.ref(copy))
            for model, copy in copies_of(self.roots(), held, self.modules_alive())
        ]
        if self._copies:
            # Nor is a copy what only waits to be collected.
            self._garbage.collect([copy for _, copy in self._copies])
            self._copies = [pair for pair in self._copies if pair[1]() is not None]
        self._structure.identity = None

    def drop_replaced(self) -> None:
        """Let go of models whose place others took and that only wait for the garbage collector.

        To be called before the first step of a new model. Nothing else tells such models from those
        that somebody still has, and what a dead model lacks is no bug.
        """
        if not self._has_new_root:
            return
        self._has_new_root = False
        classes = Counter(type(root) for root in self.roots())
        alike = [weakref.ref(root) for root in self.roots() if classes[type(root)] > 1]
        if alike:
            self._garbage.collect(alike)

    def structure(self, *, is_fresh: bool = True) -> Structure:
        """Return the present structure, rebuilt only if something was replaced.

        Without *is_fresh* the last one, where nothing can have been replaced since.
        """
        structure = self._structure
        if not is_fresh and structure.identity is not None:
            return structure
        identity = structure.identity
        if identity is None or identity != self._identity(structure) or not structure.is_alive():
            structure = self._structure = self._build()
            structure.identity = self._identity(structure)
        return structure

    def _identity(self, structure: Structure) -> list[int] | None:
        modules = [module for one in structure.modules if (module := one()) is not None]
        if len(modules) != len(structure.modules):
            return None
        # There may be thousands: nothing here is done by the interpreter for each of them.
        members = chain.from_iterable(map(_members, modules))
        identity = list(map(id, chain.from_iterable(map(_values, members))))
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                identity.extend(map(id, group["params"]))
            identity += (id(optimizer), len(optimizer.param_groups))
        return identity

    def _build(self) -> Structure:
        result = Structure()
        takes = self._selection.takes
        owned: set[int] = set()
        parameters: list[tuple[int, Tensor]] = []
        buffers: list[tuple[int, Tensor]] = []
        modules: list[tuple[int, Any]] = []
        have_run, owned_by = [], []
        module_places: dict[int, int] = {}
        module_of: list[int] = []
        for root in self.roots():
            owner = self._labels.text(root)
            have_run.append(any(module in self._seen_modules for module in root.modules()))
            num_before = len(parameters)
            for path, module in root.named_modules(remove_duplicate=False):
                module_type = class_path(type(module))
                modules.append((self._code("module", path, owner, module_type), module))
                for kind, members, rows in (
                    ("parameter", module._parameters, parameters),
                    ("buffer", module._buffers, buffers),
                ):
                    for name, tensor in members.items():
                        if tensor is None or _is_uninitialized(tensor):
                            continue
                        full = f"{path}.{name}" if path else name
                        owned.add(id(tensor))
                        if not takes(full):
                            continue
                        code = self._tensor_code(kind, full, owner, tensor, module_type)
                        rows.append((code, tensor))
                        if kind == "parameter":
                            module_of.append(
                                module_places.setdefault(id(module), len(module_places))
                            )
                        result.names.setdefault(id(tensor), full)
            owned_by.append(len(parameters) - num_before)
        is_owned = [True] * len(parameters)
        if any(have_run):
            is_owned = [
                ran for ran, number in zip(have_run, owned_by, strict=True) for _ in range(number)
            ]
        for name, owner, tensor in self._orphans(owned):
            if not takes(name):
                continue
            parameters.append((self._tensor_code("parameter", name, owner, tensor, ""), tensor))
            # An id that no module has.
            module_of.append(module_places.setdefault(0, len(module_places)))
            result.names.setdefault(id(tensor), name)
        result.modules = [weakref.ref(module) for _, module in modules]
        result.module_rows = np.array([code for code, _ in modules], np.int32)
        result.parameters = Tensors(parameters)
        result.copies = Tensors(self._copied(parameters))
        result.buffers = Tensors(buffers)
        orphans = [False] * (len(parameters) - len(is_owned))
        result.in_model = np.array(is_owned + orphans, np.bool_)
        result.placement = placements([tensor for _, tensor in parameters])
        result.parameter_modules = list(module_places)
        result.module_of_parameter = np.array(module_of, np.int64)
        rows_of: dict[int, list[int]] = {}
        for row, (_, tensor) in enumerate(parameters):
            rows_of.setdefault(id(tensor), []).append(row)
        for optimizer in self.optimizers():
            pairs = [
                (row, number)
                for number, group in enumerate(optimizer.param_groups)
                for parameter in group["params"]
                for row in rows_of.get(id(parameter), ())
            ]
            held = np.array(pairs, np.int64).reshape(-1, 2)
            code = self._labels.code(optimizer)
            result.holdings.append((weakref.ref(optimizer), code, held[:, 0], held[:, 1]))
        return result

    def _copied(self, parameters: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
        """Return the parameters of copies with the codes of those that they are copies of."""
        code_of = {id(tensor): code for code, tensor in parameters}
        rows = []
        for model_reference, copy_reference in self._copies:
            model, copy = model_reference(), copy_reference()
            if model is None or copy is None:
                continue
            theirs = dict(copy.named_parameters())
            rows += [
                (code_of[id(parameter)], theirs[name])
                for name, parameter in model.named_parameters()
                if id(parameter) in code_of and name in theirs
            ]
        return rows

    def _orphans(self, owned: set[int]) -> Iterator[tuple[str, str, Tensor]]:
        """Yield the parameters that optimizers hold and no tracked model has."""
        for optimizer in self.optimizers():
            owner = self._labels.text(optimizer)
            for number, group in enumerate(optimizer.param_groups):
                names = group.get("param_names")
                for index, parameter in enumerate(group["params"]):
                    if id(parameter) not in owned and not _is_uninitialized(parameter):
                        owned.add(id(parameter))
                        name = names[index] if names else f"{number}.{index}"
                        yield name, owner, parameter

    def slots(self, optimizers: Sequence[Any]) -> Tensors:
        """Return the slots of *optimizers*."""
        structure = self._structure
        identity = [
            id(tensor)
            for optimizer in optimizers
            for state in optimizer.state.values()
            if isinstance(state, dict)
            for tensor in state.values()
            if isinstance(tensor, Tensor)
        ]
        key = id(optimizers[0]) if len(optimizers) == 1 else 0
        known = self._slots.get(key)
        if (
            known is not None
            and known[0] is structure
            and known[1] == identity
            and known[2].are_alive()
        ):
            return known[2]
        names = structure.names
        table = Tensors(
            [
                (self._slot_code(holder, names.get(id(parameter), "?"), name, tensor), tensor)
                for holder, optimizer in ((self._labels.code(one), one) for one in optimizers)
                for parameter, state in optimizer.state.items()
                if isinstance(state, dict)
                for name, tensor in state.items()
                if isinstance(tensor, Tensor)
            ]
        )
        self._slots[key] = (structure, identity, table)
        return table

    def _slot_code(self, holder: int, parameter: str, name: str, tensor: Tensor) -> int:
        owner = self._catalog.objects[holder]
        return self._tensor_code("slot", f"{parameter}.{name}", owner, tensor, "")

    def group_options(self, optimizer: Any) -> list[tuple[int, float]]:
        """Return code and value of each numeric option of the param groups of *optimizer*."""
        holder = self._labels.code(optimizer)
        rows = []
        for number, group in enumerate(optimizer.param_groups):
            for option, value in group.items():
                if isinstance(value, (int, float)) or _is_scalar(value):
                    key = (holder, number, option)
                    code = self._group_codes.get(key)
                    if code is None:
                        owner = self._catalog.objects[holder]
                        code = self._code("group", f"{number}.{option}", owner, "float")
                        self._group_codes[key] = code
                    rows.append((code, float(value)))
        return rows

    def _code(self, kind: VariableKind, name: str, owner: str, type_: str) -> int:
        return self._catalog.variables.code(Variable(kind=kind, name=name, owner=owner, type=type_))

    def _tensor_code(
        self, kind: Any, name: str, owner: str, tensor: Tensor, module_type: str
    ) -> int:
        return self._catalog.variables.code(
            Variable(
                kind=kind,
                name=name,
                owner=owner,
                type=class_path(type(tensor)),
                module_type=module_type,
                shape=sizes(tensor),
            )
        )


_members: Callable[[Any], tuple[dict[str, Any], ...]] = attrgetter(
    "_parameters", "_modules", "_buffers"
)
_values: Callable[[dict[str, Any]], Iterable[Any]] = methodcaller("values")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_cpu


_is_uninitialized: Callable[[Any], bool] = torch.nn.parameter.is_lazy
