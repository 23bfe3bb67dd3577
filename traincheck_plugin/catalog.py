"""Values that repeat, each with a small code, and how they hang together."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from operator import attrgetter
from typing import Any, Generic, TypeVar

import numpy as np

from traincheck_plugin.vocabulary import (
    CONTEXT_COLUMNS,
    CONTEXT_NUMBERS,
    NONE,
    Api,
    Array,
    Bool,
    Context,
    Int32,
    Int64,
    Item,
    Role,
    Variable,
    decode_signature,
)

T = TypeVar("T", bound=Hashable)


class Interner(Generic[T]):
    """Gives each distinct value a small code, in order of first sight; threads may share it."""

    __slots__ = ("_codes", "_lock", "_values")

    def __init__(self) -> None:
        self._values: list[T] = []
        self._codes: dict[T, int] = {}
        self._lock = threading.Lock()

    def code(self, value: T) -> int:
        """Return the code of *value*, giving it the next one when it is new."""
        code = self._codes.get(value)
        if code is None:
            with self._lock:
                code = self._codes.setdefault(value, len(self._values))
                if code == len(self._values):
                    self._values.append(value)
        return code

    def append(self, value: T) -> None:
        """Give *value* the next code, though it may have one: so that those of a trace stay."""
        with self._lock:
            self._codes.setdefault(value, len(self._values))
            self._values.append(value)

    def find(self, value: T) -> int:
        """Return the code of *value*, or `NONE` when it was never seen."""
        return self._codes.get(value, NONE)

    def __getitem__(self, code: int) -> T:
        if code < 0:
            raise IndexError(code)
        return self._values[code]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[T]:
        return iter(self._values)


_properties = attrgetter(*CONTEXT_COLUMNS)

KEPT_CONTEXTS = 1 << 12
"""Contexts that are kept as objects, those of about a thousand steps."""


class Contexts:
    """Gives each distinct context a code, like an `Interner`, and keeps them as columns.

    Every step has new contexts: those of a trace are only made where somebody asks for one, and of
    those of a run that goes on only the latest are kept as objects. A context that comes again
    after so many others gets another code.

    Attributes:
        others: numbers the values of properties that are no numbers.
    """

    def __init__(self) -> None:
        self.others: Interner[Hashable] = Interner()
        self._values: list[Context | None] = []
        self._codes: dict[Context, int] = {}
        self._lock = threading.RLock()
        self._num_coded = self._num_forgotten = 0
        self._table = np.empty((64, len(CONTEXT_COLUMNS)), np.int64)
        self._num_rows = 0

    def code(self, value: Context) -> int:
        """Return the code of *value*, giving it the next one when it is new."""
        code = self._codes.get(value)
        if code is None:
            with self._lock:
                self._code_all()
                code = self._codes.setdefault(value, len(self._values))
                if code == len(self._values):
                    self._values.append(value)
                    self._num_coded = len(self._values)
                if len(self._codes) > 2 * KEPT_CONTEXTS:
                    self._forget()
        return code

    def _forget(self) -> None:
        """Keep but the latest as objects."""
        start, stop = self._num_forgotten, self._fill() - KEPT_CONTEXTS
        self._values[start:stop] = [None] * (stop - start)
        self._codes = {value: code for value, code in self._codes.items() if code >= stop}
        self._num_forgotten = stop

    def _code_all(self) -> None:
        for code in range(self._num_coded, len(self._values)):
            self._codes.setdefault(self[code], code)
        self._num_coded = len(self._values)

    def extend(self, columns: Mapping[str, Array]) -> None:
        """Add contexts that are not known yet, as the values that `column` returns."""
        start = self._fill()
        stop = start + len(columns["step"])
        self._reserve(stop)
        for index, name in enumerate(CONTEXT_COLUMNS):
            self._table[start:stop, index] = columns[name]
        self._num_rows = stop
        self._values += [None] * (stop - start)

    def column(self, name: str) -> Int64:
        """Return a property of all contexts, by code: a number, or the code of *others*."""
        rows = self._fill()
        return self._table[:rows, CONTEXT_COLUMNS.index(name)]

    def _fill(self) -> int:
        if self._num_rows < len(self._values):
            with self._lock:
                start, stop = self._num_rows, len(self._values)
                self._reserve(stop)
                number = self.others.code
                self._table[start:stop] = [
                    [
                        value if name in CONTEXT_NUMBERS else number(value)
                        for name, value in zip(CONTEXT_COLUMNS, _properties(context), strict=True)
                    ]
                    for context in self._values[start:stop]
                ]
                self._num_rows = stop
        return self._num_rows

    def _reserve(self, size: int) -> None:
        if size > len(self._table):
            more = np.empty((max(size, 2 * len(self._table)), self._table.shape[1]), np.int64)
            more[: self._num_rows] = self._table[: self._num_rows]
            self._table = more

    def __getitem__(self, code: int) -> Context:
        if code < 0:
            raise IndexError(code)
        value = self._values[code]
        if value is None:
            found: dict[str, Any] = dict(
                zip(CONTEXT_COLUMNS, self._table[code].tolist(), strict=True)
            )
            for name in set(found) - CONTEXT_NUMBERS:
                found[name] = self.others[found[name]]
            found["grad_enabled"] = bool(found["grad_enabled"])
            value = self._values[code] = Context(**found)
        return value

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Context]:
        return (self[code] for code in range(len(self._values)))


class Numbering:
    """Numbers what variables belong to, while more variables come.

    Args:
        variables: all of them.
        key: what one belongs to.
    """

    def __init__(self, variables: Interner[Variable], key: Callable[[Variable], Hashable]) -> None:
        self._variables = variables
        self._key = key
        self._keys: Interner[Hashable] = Interner()
        self._numbers: Int64 = np.empty(0, np.int64)

    def of(self, variables: Int32) -> Int64:
        """Return the number of what each of these variables belongs to."""
        known = len(self._numbers)
        if known < len(self._variables):
            codes = range(known, len(self._variables))
            new = [self._keys.code(self._key(self._variables[code])) for code in codes]
            self._numbers = np.append(self._numbers, np.array(new, np.int64))
        return self._numbers[variables]

    def find(self, key: Hashable) -> int:
        """Return the number of something, or `NONE` where no variable that was asked for is its."""
        return self._keys.find(key)

    def __len__(self) -> int:
        return len(self._keys)


class Catalog:
    """The interned values that the calls and frames of one process point into.

    Attributes:
        apis, variables, contexts: by their own classes.
        sources: ``path/train.py:152 in train``: the user's line that led to a call.
        signatures: summaries of arguments or results, see `encode_signature`.
        objects: ``torch.optim.Adam#0``: class and number of the instance a method was called on.
        strings: exceptions, dtypes and other short texts.
        owners, parts, modules: the objects that variables belong to, their parts of the highest
            level, and their modules, by numbers.
    """

    def __init__(self) -> None:
        self.apis: Interner[Api] = Interner()
        self.variables: Interner[Variable] = Interner()
        self.contexts = Contexts()
        self.sources: Interner[str] = Interner()
        self.signatures: Interner[str] = Interner()
        self.objects: Interner[str] = Interner()
        self.strings: Interner[str] = Interner()
        self._decoded: dict[int, tuple[Item, ...]] = {}
        self._kinds: dict[int, frozenset[tuple[str, tuple[int, ...]]]] = {}
        self._num_elements: Int64 = np.empty(0, np.int64)
        self.owners = Numbering(self.variables, lambda v: v.owner)
        self.parts = Numbering(self.variables, lambda v: (v.owner, v.name.partition(".")[0]))
        self.modules = Numbering(self.variables, lambda v: (v.owner, v.name.rpartition(".")[0]))
        self._with_parameters: set[str] = set()
        self._num_looked_at = 0
        self._by_name: dict[str, set[int]] = {}
        self._by_role: dict[str, set[int]] = {}
        self._num_sorted = 0

    def apis_by_name(self, name: str) -> Set[int]:
        """Return the codes of the APIs that answer to *name*."""
        self._sort_apis()
        return self._by_name.get(name, frozenset())

    def apis_by_role(self, role: Role) -> Set[int]:
        """Return the codes of the APIs of a role."""
        self._sort_apis()
        return self._by_role.get(role, frozenset())

    def _sort_apis(self) -> None:
        for code in range(self._num_sorted, len(self.apis)):
            api = self.apis[code]
            self._by_role.setdefault(api.role, set()).add(code)
            for name in api.names:
                self._by_name.setdefault(name, set()).add(code)
            self._num_sorted = code + 1

    def signature(self, code: int) -> tuple[Item, ...]:
        """Return the items of signature *code*; none for `NONE`."""
        if code < 0:
            return ()
        items = self._decoded.get(code)
        if items is None:
            items = self._decoded[code] = decode_signature(self.signatures[code])
        return items

    def kinds(self, code: int) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Return the dtypes and shapes of the tensors in signature *code*."""
        kinds = self._kinds.get(code)
        if kinds is None:
            kinds = self._kinds[code] = frozenset(
                (item.dtype, item.shape)
                for item in self.signature(code)
                if item.dtype is not None and item.shape
            )
        return kinds

    def num_elements(self, variables: Int32) -> Int64:
        """Return how many elements each of these variables has."""
        known = len(self._num_elements)
        if known < len(self.variables):
            new = [math.prod(self.variables[c].shape) for c in range(known, len(self.variables))]
            self._num_elements = np.append(self._num_elements, np.array(new, np.int64))
        return self._num_elements[variables]

    def has_parameters(self, owner: str) -> bool:
        """Return whether a parameter that is known by now belongs to the object with this label."""
        for code in range(self._num_looked_at, len(self.variables)):
            variable = self.variables[code]
            if variable.kind == "parameter":
                self._with_parameters.add(variable.owner)
            self._num_looked_at = code + 1
        return owner in self._with_parameters

    def is_owned(self, variables: Int32, objects: Int32) -> Bool:
        """Return which of these variables belong to each of some objects, a row for each."""
        owners, find = self.owners.of(variables), self.owners.find
        codes, rows = np.unique(objects, return_inverse=True)
        numbers = [find(self.objects[c]) if c != NONE else NONE for c in codes.tolist()]
        is_owned: Bool = np.array(numbers, np.int64)[rows, None] == owners
        return is_owned
