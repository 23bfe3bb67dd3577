"""The words in which a training run is told: roles, APIs, variables, contexts, items of calls."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

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
    "stored",  # an array, or a list, that the data set of a loader stores
    "input",  # a tensor among the arguments of a root module in training
    "generator",  # the state of a random generator
    "target",  # where the target of a loss is in a tensor that a root module was given
    "padding",  # how much of what such a tensor tells to be padding has targets that count
    "sample",  # a row of such a tensor, and which target a loss has for it
    "sequence",  # what a module that treats sequences is given
    "alias",  # a further name of a module that a root module has under several
    "evaluation",  # the mode of a root module that runs without gradients
]

PASSING: frozenset[VariableKind] = frozenset(
    {
        *("batch", "loader", "stored"),
        *("input", "generator", "target", "padding", "sample", "sequence", "alias", "evaluation"),
    }
)
"""Kinds of variables that are not tracked: they are at hand during one call."""

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


MAX_SAMPLES = 64
"""Samples of a tensor that are told: those with the smallest keys, so that another batch with the
same samples tells them, too."""

NOWHERE = math.inf
"""The lag of a target that is not in the input of the model."""

LAYER = "layer"
"""Stands in the formula of a loss for what has parameters, and for products."""

CONSTANT = "constant"
"""Stands there for what no gradient goes to: a target, what was detached."""

BROADCAST = "broadcast"
"""Stands there besides for predictions of one number each that a loss, their difference to targets,
or their product with as many numbers expands, by another shape of these, to one for each pair."""

ENTRY = ">"
"""Stands there before the weight of a layer to whose input no gradient goes."""

FROM = "<"
"""Stands there between a part of a model and one from which it is given something, and between a
function and those that compute what it is given without gradients."""

MORE = "*"
"""Stands there for other parts, where there are too many."""

BY = ":"
"""Stands before each operation on the way between two parts."""

NO_CUT = "none"
"""What is told of a loss of which no function took the gradients from a term."""

NO_DERIVATION = "none"
"""What is told of a loss that is given nothing that was computed without gradients."""

WITHIN = "within"
"""Stands there before what is told of a loss that was computed in the forward of a model."""

GIVEN = "given"
"""Where it is told that what clips gradients is given none."""

Setting = Literal[
    "dimension",
    "ignored",
    "masked",
    "hides",
    "side",
    "padding",
    "summed",
    "mixes",
    "picked",
    "repeated",
    "flat",
]
"""What an operation of a loss is told to be set to: the dimensions that it goes over, counted from
the last; the target that it leaves out; whether something hides elements from it, and which, and
whether that is the end of sequences that is padded; whether values are summed up along the
dimension along which their weights add up to one; whether a reshape takes elements of one axis for
those of another; whether classes are picked along the dimension over which their log_softmax goes;
whether something is compared with the same twice; whether its gradients are zeros, whatever the
parameters are."""
