"""Builds synthetic windows for tests, without torch.

A run is told in the order in which it happens:

    run = RunBuilder()
    run.at(stage="training", step=3)
    weights = run.parameters("fc.weight", "fc.bias", owner="__main__.Net#0")
    with run.calling("torch.optim.Adam.step", object="torch.optim.Adam#0"):
        run.frame("begin", weights, data=[1, 2], grad=[2, 2])
        run.call("torch.nn.functional.relu")
        run.frame("end", weights, data=[3, 4], grad=[2, 2])
    window = run.window()

`RunBuilder.training_step` tells a whole healthy step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import ATTRIBUTES, Calls, Frame, Window
from traincheck_plugin.vocabulary import (
    NONE,
    Api,
    Context,
    GradState,
    Int32,
    Item,
    Phase,
    Role,
    Variable,
    VariableKind,
    encode_signature,
)

ROLES: dict[str, Role] = {
    "__init__": "construct",
    "step": "step",
    "zero_grad": "zero_grad",
    "backward": "backward",
    "clip_grad_norm_": "clip",
    "clip_grad_value_": "clip",
    "unscale_": "scaler",
    "update": "scaler",
    "train": "mode",
    "eval": "mode",
    "forward": "forward",
    "__next__": "data",
    "load_state_dict": "checkpoint",
    "state_dict": "checkpoint",
    "manual_seed": "seed",
}
"""The role of an API by the last part of its name, where a test does not say."""

BASES = {
    "torch.optim.": "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.": "torch.optim.lr_scheduler.LRScheduler",
}


def default_role(name: str) -> Role:
    """Return what the API called *name* most likely means for training."""
    if name.startswith("torch.optim.lr_scheduler."):
        return "scheduler"
    if ".GradScaler." in name:
        return "scaler"
    return ROLES.get(name.rpartition(".")[2], "function")


def default_names(name: str) -> tuple[str, ...]:
    """Return *name* and, for methods of optimizers and schedulers, that of the base class."""
    owner, _, method = name.rpartition(".")
    base = BASES.get(owner.rpartition(".")[0] + ".")
    return (name,) if base in (None, owner) else (name, f"{base}.{method}")


def tensor(
    path: str = "0",
    *,
    dtype: str = "torch.float32",
    shape: tuple[int, ...] = (2, 3),
    device: str = "cpu",
    requires_grad: bool = False,
    type: str = "torch.Tensor",
) -> Item:
    """Return a tensor among the arguments or results of a call."""
    return Item(
        path=path,
        type=type,
        dtype=dtype,
        shape=shape,
        device=device,
        requires_grad=requires_grad,
    )


class RunBuilder:
    """Tells what happens in one process and cuts it into windows."""

    def __init__(
        self, *, rank: int = 0, world_size: int = 1, catalog: Catalog | None = None
    ) -> None:
        self.catalog = catalog or Catalog()
        self.context = Context(rank=rank, world_size=world_size)
        self.num_windows = 0
        self._sequence = 0
        self._next_call = 0
        self._open: list[dict[str, int]] = []
        self._rows: list[tuple[int, ...]] = []
        self._frames: list[Frame] = []

    def at(self, **changes: Any) -> Context:
        """Change properties of the context of what follows: ``step``, ``stage``, ..."""
        self.context = replace(self.context, **changes)
        return self.context

    def _tick(self) -> int:
        self._sequence += 1
        return self._sequence

    def variables(self, *variables: Variable) -> Int32:
        """Return the codes of *variables*."""
        return np.array([self.catalog.variables.code(v) for v in variables], np.int32)

    def parameters(
        self,
        *names: str,
        owner: str = "__main__.Net#0",
        kind: VariableKind = "parameter",
        type: str = "",
        module_type: str = "torch.nn.Linear",
        shape: tuple[int, ...] = (2, 3),
    ) -> Int32:
        """Return the codes of variables of one *kind*, by their names."""
        types = {"parameter": "torch.nn.Parameter", "group": "float", "module": module_type}
        is_tensor = kind in ("parameter", "buffer", "slot")
        return self.variables(
            *(
                Variable(
                    kind=kind,
                    name=name,
                    owner=owner,
                    type=type or types.get(kind, "torch.Tensor"),
                    module_type=module_type if kind in ("parameter", "buffer") else "",
                    shape=shape if is_tensor else (),
                )
                for name in names
            )
        )

    def begin(
        self,
        name: str,
        *,
        role: Role | None = None,
        names: tuple[str, ...] | None = None,
        object: str = "",
        inputs: Sequence[Item] | None = None,
        source: str = "train.py:1 in train",
        thread: int = 0,
        steps_since_clear: int = -1,
    ) -> int:
        """Begin a call inside the innermost open one and return its number."""
        api = Api(
            name=name,
            names=names if names is not None else default_names(name),
            role=role or default_role(name),
        )
        number = self._next_call
        self._next_call += 1
        sequence = self._tick()
        context = replace(self.context, steps_since_clear=steps_since_clear)
        self._open.append(
            {
                "call": number,
                "parent": self._open[-1]["call"] if self._open else NONE,
                "api": self.catalog.apis.code(api),
                "object": self.catalog.objects.code(object) if object else NONE,
                "begin": sequence,
                "begin_ns": sequence * 1000,
                "context": self.catalog.contexts.code(context),
                "source": self.catalog.sources.code(source) if source else NONE,
                "inputs": self._signature(inputs),
                "thread": thread,
            }
        )
        return number

    def end(self, *, outputs: Sequence[Item] | None = None, exception: str = "") -> None:
        """End the innermost open call."""
        call = self._open.pop()
        sequence = self._tick()
        self._rows.append(
            (
                call["call"],
                call["parent"],
                call["api"],
                call["object"],
                call["begin"],
                sequence,
                call["begin_ns"],
                sequence * 1000,
                call["context"],
                call["source"],
                call["inputs"],
                self._signature(outputs),
                self.catalog.strings.code(exception) if exception else NONE,
                call["thread"],
            )
        )

    def _signature(self, items: Sequence[Item] | None) -> int:
        return NONE if items is None else self.catalog.signatures.code(encode_signature(items))

    def call(
        self,
        name: str,
        *,
        outputs: Sequence[Item] | None = None,
        exception: str = "",
        **options: Any,
    ) -> int:
        """Tell a whole call in which nothing else happens; *options* as for `begin`."""
        number = self.begin(name, **options)
        self.end(outputs=outputs, exception=exception)
        return number

    @contextmanager
    def calling(
        self,
        name: str,
        *,
        outputs: Sequence[Item] | None = None,
        exception: str = "",
        **options: Any,
    ) -> Iterator[int]:
        """Tell a call in which what the body tells happens; *options* as for `begin`."""
        yield self.begin(name, **options)
        self.end(outputs=outputs, exception=exception)

    def frame(
        self, phase: Phase, variables: Int32, *, call: int | None = None, **columns: Any
    ) -> Frame:
        """Take a frame of *variables* at the begin or end of *call*, by default the open one.

        Values of *columns* are one for all rows or one for each; those of ``optimizer``,
        ``dtype`` and ``grad_dtype`` are given as text, "" for none.
        """
        if call is None and not self._open:
            raise ValueError("a frame needs an open call, or the number of one")
        frame = Frame(
            call=self._open[-1]["call"] if call is None else call,
            phase=phase,
            sequence=self._tick(),
            context=self.catalog.contexts.code(self.context),
            variables=variables,
            columns={
                name: self._column(name, values, len(variables)) for name, values in columns.items()
            },
        )
        self._frames.append(frame)
        return frame

    def _column(self, name: str, values: Any, length: int) -> np.ndarray:
        if name in ("optimizer", "dtype", "grad_dtype"):
            interner = self.catalog.objects if name == "optimizer" else self.catalog.strings
            texts = [values] * length if isinstance(values, str) else values
            values = [interner.code(text) if text else NONE for text in texts]
        array = np.asarray(values, ATTRIBUTES[name])
        return np.broadcast_to(array, (length,)).copy()

    def window(self, *, observed: bool = True) -> Window:
        """Return everything told since the last window as one."""
        window = Window(
            index=self.num_windows,
            rank=self.context.rank,
            calls=Calls.from_rows(self._rows),
            frames=tuple(self._frames),
            catalog=self.catalog,
            observed=observed,
        )
        self.num_windows += 1
        self._rows, self._frames = [], []
        return window

    def training_step(
        self,
        parameters: Int32,
        *,
        optimizer: str = "torch.optim.Adam#0",
        model: str = "__main__.Net#0",
        num_functions: int = 0,
        lr: float = 1e-3,
        clears: bool = True,
        updates: bool = True,
        grad: GradState = GradState.NON_ZERO,
    ) -> Window:
        """Tell one step (zero_grad, forward, backward, step) and return its window.

        *clears*, *updates* and *grad* seed the classic faults; *num_functions* relu calls run
        inside the forward. The step of the context advances by one afterwards.
        """
        self.at(stage="training", micro_step=0)
        optimizer_class = optimizer.rpartition("#")[0]
        step = self.context.step
        count = len(parameters)
        before = np.arange(count, dtype=np.uint64) + np.uint64(1 + 1000 * step)
        after = before + np.uint64(1000 if updates else 0)
        earlier = GradState.NULL if step == 0 else grad
        cleared = GradState.NULL if clears else earlier
        held: dict[str, Any] = {
            "requires_grad": True,
            "in_model": True,
            "optimizer": optimizer,
            "lr": lr,
        }
        since = min(step, 1)
        with self.calling(
            f"{optimizer_class}.zero_grad", object=optimizer, steps_since_clear=since
        ):
            self.frame("begin", parameters, grad=earlier, **held)
            self.frame("end", parameters, grad=cleared, **held)
        with self.calling(
            f"{model.rpartition('#')[0]}.forward",
            object=model,
            inputs=[tensor("0", shape=(8, 3))],
            outputs=[tensor("", shape=(8, 2), requires_grad=True)],
        ):
            for _ in range(num_functions):
                self.call(
                    "torch.nn.functional.relu",
                    inputs=[tensor("0", requires_grad=True)],
                    outputs=[tensor("", requires_grad=True)],
                    source="train.py:2 in forward",
                )
        with self.calling(
            "torch.Tensor.backward",
            names=("torch.Tensor.backward", "torch.autograd.backward"),
            inputs=[tensor("0", shape=(), requires_grad=True)],
        ):
            self.frame("begin", parameters, grad=cleared, grad_norm=0.0, **held)
            self.frame("end", parameters, grad=grad, grad_norm=1.0, **held)
        self.at(micro_step=1)
        values: dict[str, Any] = {
            "grad": grad,
            "grad_norm": 1.0,
            "dtype": "torch.float32",
            "grad_dtype": "torch.float32",
            **held,
        }
        with self.calling(f"{optimizer_class}.step", object=optimizer, steps_since_clear=0):
            self.frame("begin", parameters, data=before, data_norm=1.0, **values)
            self.frame("end", parameters, data=after, data_norm=1.0, **values)
        window = self.window()
        self.at(step=step + 1, micro_step=0)
        return window


def training_run(
    num_steps: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    names: Sequence[str] = ("fc.weight", "fc.bias"),
    **options: Any,
) -> list[Window]:
    """Return the windows of a run of *num_steps* steps; *options* as for `training_step`."""
    run = RunBuilder(rank=rank, world_size=world_size)
    parameters = run.parameters(*names)
    return [run.training_step(parameters, **options) for _ in range(num_steps)]
