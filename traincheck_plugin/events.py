"""What happens in a training run, as data: calls, frames, contexts and windows.

Everything that repeats (an API, a variable, a place in the source, the summary of some arguments)
is interned once per process in a `Catalog`; calls and frames are columns of small integers over
it. A `Window` is the unit that flows from the recorder or a trace through inference and checking.

All begins, ends and frames of a process are numbered by one counter, the *sequence*: it orders
them totally, which clock readings do not.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import cached_property
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

Role = Literal[
    "construct",  # an optimizer or a learning-rate scheduler is built
    "step",  # Optimizer.step
    "zero_grad",  # Optimizer.zero_grad, Module.zero_grad
    "backward",  # torch.autograd.backward, Tensor.backward
    "clip",  # clip_grad_norm_, clip_grad_value_
    "scaler",  # GradScaler.step, unscale_, update
    "scheduler",  # LRScheduler.step
    "mode",  # Module.train, Module.eval
    "forward",  # forward of a root module
    "data",  # a data loader starts or delivers a batch
    "checkpoint",  # save and load of modules, optimizers and files
    "seed",  # a random generator is seeded
    "autocast",  # entering an autocast region
    "framework",  # a training call of a framework, such as Accelerator.backward
    "function",  # any other public torch function, observed at the boundary
    "instrumented",  # a function of a package named in --modules-to-instr
]

Stage = Literal["init", "training", "validation", "testing", "checkpointing"]
Phase = Literal["begin", "end"]
VariableKind = Literal[
    "parameter",
    "buffer",
    "slot",
    "group",
    "module",
    "batch",  # a tensor of what a data loader delivers
    "loader",  # a fact about a data loader
    "input",  # a tensor among the arguments of a root module in training
    "generator",  # the state of a random generator
]

NONE = -1
"""The code of an absent object, parent, exception, source or signature."""


class GradState(IntEnum):
    """What the gradient of one parameter is at one moment."""

    NULL = 0  # None
    ZERO = 1  # a tensor of zeros
    NON_ZERO = 2
    NON_FINITE = 3  # holds NaN or infinity


class Placement(IntEnum):
    """How the copies of one parameter on different ranks are meant to relate."""

    UNKNOWN = 0
    REPLICATED = 1  # equal on all ranks, as what DistributedDataParallel holds
    LOCAL = 2  # different: a shard, or a copy that is only averaged from time to time


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Something callable that is observed.

    Attributes:
        name: public path, such as ``torch.optim.Adam.step``.
        names: every name the API answers to, most specific first: the public path, the path where
            it is defined, and both for each base class (``torch.optim.Optimizer.step``).
        role: what the call means for training.
    """

    name: str
    names: tuple[str, ...]
    role: Role

    @property
    def general(self) -> str:
        """The public name of the base-most class it is known by: ``torch.optim.Optimizer.step``."""
        if len(self.names) > 1 and _tail(self.names[-2]) == _tail(self.names[-1]):
            return self.names[-2]
        return self.names[-1]


def _tail(name: str) -> list[str]:
    return name.split(".")[-2:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """Something with state that training changes.

    Attributes:
        kind: what it is.
        name: qualified name in its owner: ``fc.weight``, ``fc.weight.exp_avg`` (slot),
            ``0.lr`` (option of param group 0), ``encoder`` (module, "" for the root), ``0`` or
            ``input_ids`` (path in a batch or among arguments), ``shuffles`` (loader; see
            `LOADER_FACTS`), ``cpu`` (generator: its device).
        owner: the object it belongs to, as in `Calls.object`: ``__main__.Net#0``. A parameter that
            an optimizer holds and no tracked model has belongs to the optimizer.
        type: ``torch.nn.Parameter``, ``torch.Tensor``, the class of the module, ``float``.
        module_type: public path of the class of the module that holds a parameter or buffer.
        shape: of a tensor, else empty.
    """

    kind: VariableKind
    name: str
    owner: str
    type: str
    module_type: str = ""
    shape: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The name a reader is shown."""
        return self.name or self.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where and when a call or frame happened.

    Attributes:
        rank: global rank of the process.
        world_size: number of processes of the run.
        step: index of the training window: optimizer steps completed so far, several optimizers of
            one batch counted once.
        micro_step: backward calls completed since the last optimizer step.
        epoch: how often the training data loader was started, less one; 0 before and without.
        stage: what the run is doing.
        grad_enabled: whether autograd records.
        autocast: the autocast dtype (``torch.bfloat16``), "" outside autocast.
        steps_since_clear: of a call on an optimizer: its steps since its gradients were last
            cleared by a `zero_grad` (its own or a module's). -1 for other calls.
        scaling: what a gradient scaler did to the gradients since the last step: ``scaled`` and
            not unscaled yet, ``unscaled``; ``disabled`` where one that is switched off was asked
            to scale the loss; "" where there is none.
        annotations: what the script itself said (`META_VARS`), as sorted pairs.
        data_parallel: which part of the data this rank sees, of those that ranks share among them.
        tensor_parallel: which part of each layer, or of each sample, it works on.
        pipeline_parallel: which layers it works on. These three are -1 where they are not known;
            ranks that differ in the first alone are replicas of one another.
    """

    rank: int = 0
    world_size: int = 1
    step: int = 0
    micro_step: int = 0
    epoch: int = 0
    stage: str = "init"
    grad_enabled: bool = True
    autocast: str = ""
    steps_since_clear: int = -1
    scaling: str = ""
    annotations: tuple[tuple[str, str], ...] = ()
    data_parallel: int = -1
    tensor_parallel: int = -1
    pipeline_parallel: int = -1

    def get(self, name: str) -> object | None:
        """Return the property *name*, or an annotation of that name, or None."""
        if name in CONTEXT_PROPERTIES:
            value: object = getattr(self, name)
            return value
        return dict(self.annotations).get(name)


CONTEXT_COLUMNS = tuple(f.name for f in fields(Context))
CONTEXT_NUMBERS = frozenset(f.name for f in fields(Context) if f.type in ("int", "bool"))
CONTEXT_PROPERTIES = frozenset(CONTEXT_COLUMNS) - {"annotations"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One value among the arguments or results of a call.

    Attributes:
        path: where: ``0`` or ``0.1`` for positions, ``weight`` for keywords, "" for a sole result.
        type: public path of its class.
        dtype, shape, device, requires_grad: of a tensor, else None.
        value: a bool, string or None given as argument; of calls of role ``instrumented`` whole
            numbers too.
    """

    path: str
    type: str
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    device: str | None = None
    requires_grad: bool | None = None
    value: str | bool | int | None = None

    ATTRIBUTES = ("dtype", "shape", "ndim", "device", "requires_grad", "value")

    @property
    def ndim(self) -> int | None:
        """The number of dimensions of a tensor, else None."""
        return None if self.shape is None else len(self.shape)

    def get(self, attribute: str) -> Any:
        """Return the value of one of `ATTRIBUTES`, or None where it has none."""
        return getattr(self, attribute)


def encode_signature(items: Sequence[Item]) -> str:
    """Return the text under which a signature is interned and stored: compact JSON."""
    rows: list[list[Any]] = []
    for item in items:
        row: list[Any] = [item.path, item.type]
        if item.dtype is not None:
            row += [item.dtype, list(item.shape or ()), item.device, item.requires_grad]
        elif item.value is not None:
            row.append(item.value)
        rows.append(row)
    return json.dumps(rows, separators=(",", ":"))


def decode_signature(text: str) -> tuple[Item, ...]:
    """Return the items of a text made by `encode_signature`."""
    items = []
    for row in json.loads(text):
        if len(row) == 6:
            path, type_, dtype, shape, device, requires_grad = row
            items.append(
                Item(
                    path=path,
                    type=type_,
                    dtype=dtype,
                    shape=tuple(shape),
                    device=device,
                    requires_grad=requires_grad,
                )
            )
        else:
            items.append(Item(path=row[0], type=row[1], value=row[2] if len(row) > 2 else None))
    return tuple(items)


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

    def is_owned(self, variables: Int32, objects: Int32) -> Bool:
        """Return which of these variables belong to each of some objects, a row for each."""
        owners, find = self.owners.of(variables), self.owners.find
        codes, rows = np.unique(objects, return_inverse=True)
        numbers = [find(self.objects[c]) if c != NONE else NONE for c in codes.tolist()]
        is_owned: Bool = np.array(numbers, np.int64)[rows, None] == owners
        return is_owned


Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

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

LOADER_FACTS = ("shuffles", "samples", "batch_size", "start", "batch", "epoch")
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
    "in_model": np.bool_,
    "optimizer": np.int32,
    "lr": np.float64,
    "dtype": np.int32,
    "grad_dtype": np.int32,
    "value": np.float64,
    "placement": np.int8,
    "ran": np.int32,
    "copy": np.uint64,
    "lowest": np.float64,
    "highest": np.float64,
}
"""Attributes of variables and how a frame stores them.

data: 64-bit hash of the exact bits (parameters, buffers, slots, generators; of large batches and
inputs, of some slices of them). data_norm: Euclidean norm of the
parameters that the call leaves as they are; of others it may be NaN. grad_norm: Euclidean norm.
grad: a `GradState`; without grad_norm, `NON_FINITE` may show as `NON_ZERO`. grad_hash: as data, 0
where the gradient is None. in_model: whether a tracked model that ran has the parameter now.
optimizer: object code of the optimizer that holds it, or `NONE`. lr: learning rate of its param
group, NaN in none. dtype, grad_dtype: codes into `Catalog.strings`, `NONE` where there is none.
value: a scalar (an option of a param group; a module's training flag as 0 or 1; the number of
elements of a batch or an input; a fact about a loader). placement: a `Placement`. ran: the place of
its module in the order in which modules last ran with gradients since the optimizer's last step,
counted from 0; else `NOT_RUN` or `RUN_WITHOUT_GRADIENTS`.
copy: as data, of the parameter of the same name in copies of the model that no optimizer holds; in
a frame of its own, with a row for each parameter of each copy. lowest, highest: smallest and
largest finite value of a batch or an input (of large ones, of the slices that data is of); NaN
where there is none.
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
