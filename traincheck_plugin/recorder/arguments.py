"""What passes through a training: batches, arguments of models, random states; as frames.

Unlike parameters these are new objects each time: their fingerprints, and the smallest and largest
of their values, are all that is kept. Random states are only read. Nothing waits for a device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.catalog import Catalog
from traincheck_plugin.events import LOADER_FACTS, Frame
from traincheck_plugin.plan import Plan
from traincheck_plugin.recorder.aliases import AliasReader
from traincheck_plugin.recorder.alignment import Alignments, Given, is_comparable
from traincheck_plugin.recorder.calls import OpenCall
from traincheck_plugin.recorder.columns import DeviceReader
from traincheck_plugin.recorder.device_fingerprint import DeviceHasher
from traincheck_plugin.recorder.fingerprint import hash_bytes, hash_tensor, local
from traincheck_plugin.recorder.loss_graph import Operations, Target, predictions, targets
from traincheck_plugin.recorder.modes import ModeReader
from traincheck_plugin.recorder.naming import Labels, class_path
from traincheck_plugin.recorder.padding import Padding
from traincheck_plugin.recorder.problems import Problems
from traincheck_plugin.recorder.ranges import (
    RANGE,
    device_ranges,
    finished_ranges,
    host_range,
)
from traincheck_plugin.recorder.readings import DeviceReadings
from traincheck_plugin.recorder.samples import keys_of, picked
from traincheck_plugin.recorder.sequences import Sequences
from traincheck_plugin.recorder.stored import Stored, stored_in
from traincheck_plugin.vocabulary import Array, Phase, Variable, VariableKind

Tensor = torch.Tensor

MAX_TENSORS = 32
"""Tensors of one batch, or among the arguments of one call, that are fingerprinted."""

MAX_TOLD = 4
"""Tensors among the arguments of one call of which the samples are told."""

MIN_TARGET = 8
"""Elements that the target of a sample has where it is told: a few may be those of another."""

MIN_PREDICTION = 3
"""Elements that the prediction for a sample has where it is told: fewer may be saturated."""

MIN_NUMBERS = 4
"""Whole numbers that a sample has where it is told."""

MAX_BYTES = 1 << 18
"""Of a larger tensor, `_SLICES` slices of it that have this size together."""

_SLICES = 16
_MAX_DEPTH = 4


class Arguments:
    """Takes frames of what a call is given or gives, and of the state of random generators.

    Attributes:
        tells_sequences: whether frames of sequences are wanted.
    """

    def __init__(
        self,
        plan: Plan,
        catalog: Catalog,
        labels: Labels,
        readings: DeviceReadings,
        problems: Problems,
        next_sequence: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._labels = labels
        self._readings = readings
        self._problems = problems
        self._next = next_sequence
        self._hasher = DeviceHasher()
        self._wants = {kind: plan.wants(role, kind) for role, kind in _ROLES}
        self._tells_samples = bool(plan.wants("forward", "sample"))
        self.tells_sequences = bool(plan.wants("forward", "sequence"))
        self._codes: dict[tuple[str, str, str, type | str], int] = {}
        self._facts: dict[str, Array] = {}
        self._paddings: dict[str, int | None] = {}
        self._alignments = Alignments(readings, DeviceReader.HOST)

    def stored_before(self, dataset: Any) -> dict[str, Stored]:
        """Return the samples that *dataset* stores, by paths, if it is wanted what changes them."""
        if "value" not in self._wants["stored"]:
            return {}
        return {one.path: one for one in stored_in(dataset, only_samples=True)}

    def of_batch(
        self,
        call: OpenCall,
        owner: str,
        dataset: Any,
        batch: Any,
        facts: list[float],
        before: Mapping[str, Stored],
    ) -> list[Frame]:
        """Return the frames of a delivered batch.

        Args:
            call: that delivers it.
            owner: label of the loader.
            dataset: of the loader.
            batch: what it delivers.
            facts: those of `LOADER_FACTS`.
            before: what `stored_before` told before.
        """
        frames: list[Frame] = []
        if self._wants["batch"]:
            frames += self._of_tensors("batch", owner, call, _tensors(batch))
        if self._wants["loader"]:
            codes = self._facts.get(owner)
            if codes is None:
                codes = self._facts[owner] = np.array(
                    [self._code("loader", owner, name, float) for name in LOADER_FACTS], np.int32
                )
            frames.append(self._frame(call, "end", codes, value=np.array(facts, np.float64)))
        if self._wants["stored"]:
            frames += self._of_stored(call, owner, dataset, before)
        return frames

    def _of_stored(
        self, call: OpenCall, owner: str, dataset: Any, before: Mapping[str, Stored]
    ) -> Iterator[Frame]:
        stored = stored_in(dataset, only_samples="data" not in self._wants["stored"])
        if not stored:
            return
        codes = [self._code("stored", owner, one.path, type(dataset)) for one in stored]
        columns: dict[str, Array] = {}
        if "data" in self._wants["stored"]:
            columns["data"] = np.array([one.key for one in stored], np.uint64)
        if "value" in self._wants["stored"]:
            changed = [
                float(one.changed(before[one.path])) if one.path in before else math.nan
                for one in stored
            ]
            columns["value"] = np.array(changed)
        yield self._frame(call, "end", np.array(codes, np.int32), **columns)

    def of_forward(
        self,
        call: OpenCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        sequences: Sequence[Sequences] = (),
    ) -> list[Frame]:
        """Return the frames of a training forward that ends.

        Args:
            call: of the outermost module.
            args: that it was given.
            kwargs: the same, by name.
            sequences: that modules in it were given.
        """
        frames: list[Frame] = []
        is_compared = any(self._wants[kind] for kind in _COMPARED)
        if self._wants["input"] or is_compared or self._tells_samples:
            owner = self._labels.text(call.subject)
            given = [*_tensors(args), *_tensors(kwargs or {})]
            if self._wants["input"]:
                frames += self._of_tensors("input", owner, call, given)
            if is_compared:
                self._alignments.give(owner, given, self._padding_of(owner, call.subject))
            if self._tells_samples:
                frames += self._of_samples(owner, call, given, "end")
        if sequences:
            frames.append(self._of_sequences(call, sequences))
        return frames + self.of_generators(call, "end")

    def of_aliases(self, call: OpenCall, reader: AliasReader) -> list[Frame]:
        """Return the frame of the modules that the model of a forward has under several names."""
        if not self._wants["alias"]:
            return []
        aliases = reader.of(call.subject)
        if not aliases:
            return []
        owner = self._labels.text(call.subject)
        codes = [self._code("alias", owner, *alias) for alias in aliases]
        value = np.ones(len(codes))
        return [self._frame(call, "end", np.array(codes, np.int32), value=value)]

    def _of_sequences(self, call: OpenCall, sequences: Sequence[Sequences]) -> Frame:
        owner = self._labels.text(call.subject)
        codes = [self._code("sequence", owner, one.name, one.type) for one in sequences]
        columns = {
            name: np.array([getattr(one, name) for one in sequences], np.float64)
            for name in ("length", "number")
        }
        return self._frame(call, "end", np.array(codes, np.int32), **columns)

    def of_evaluation(
        self,
        call: OpenCall,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        reader: ModeReader,
    ) -> list[Frame]:
        """Return the frames of a forward without gradients that ends.

        Args:
            call: of the outermost module.
            args: that it was given.
            kwargs: the same, by name.
            reader: tells its mode.
        """
        owner = self._labels.text(call.subject)
        frames: list[Frame] = []
        if self._wants["evaluation"]:
            code = self._code("evaluation", owner, "", type(call.subject))
            mode = reader.of(call.subject)
            value, number = (np.array([one], np.float64) for one in mode)
            frames.append(
                self._frame(call, "end", np.array([code], np.int32), value=value, number=number)
            )
        if self._tells_samples:
            given = [*_tensors(args), *_tensors(kwargs or {})]
            frames += self._of_samples(owner, call, given, "end")
        return frames

    def of_loss(self, call: OpenCall, known: Operations) -> list[Frame]:
        """Return the frames of the targets of a loss: where they are, and of which sample."""
        is_compared = any(self._wants[kind] for kind in _COMPARED)
        if not known or not (is_compared or self._tells_samples):
            return []
        found = targets(known)
        frames: list[Frame] = []
        if self._tells_samples:
            compared = [(target.operation, "target", target.values, MIN_TARGET) for target in found]
            compared += [
                (operation, "prediction", values, MIN_PREDICTION)
                for operation, values in predictions(known)
            ]
            for operation, path, values, least in compared:
                is_real = values.is_floating_point()
                if is_real and values.dim() and values.numel() >= least * len(values):
                    frames += self._of_samples(operation, call, [(path, values)], "begin")
        if self._wants["target"]:
            pairs, lags = self._alignments.of(found)
            codes = np.array([self._pair("target", *pair) for pair in pairs], np.int32)
            if pairs:
                frames.append(self._frame(call, "begin", codes, value=lags))
        if self._wants["padding"]:
            for target, owner, path, share in self._alignments.padding(found):
                codes = np.array([self._code("padding", owner, path, target.operation)], np.int32)
                frames.append(self._frame(call, "begin", codes, value=share))
        if self._wants["sample"]:
            for target, given, (keys, labels) in self._alignments.samples(found):
                codes = np.full(len(keys), self._pair("sample", target, given), np.int32)
                frames.append(self._frame(call, "begin", codes, data=keys, value=labels))
        return frames

    def padded(self) -> dict[int, Padding]:
        """Return the padding of the sequences that models were given, by their length."""
        return self._alignments.padded()

    def stepped(self) -> None:
        """Keep nothing that was given before an optimizer stepped."""
        self._alignments.clear()

    def of_generators(self, call: OpenCall, phase: Phase = "begin") -> list[Frame]:
        """Return the frame of the default generators that are in use."""
        if not self._wants["generator"]:
            return []
        states = {
            "cpu": hash_tensor(torch.default_generator.get_state(), self._problems),
            "numpy": _numpy_state(),
            "python": _python_state(),
        }
        if torch.cuda.is_initialized():
            # Seed and offset are kept on the host.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            states["cuda"] = hash_tensor(generator.get_state(), self._problems)
        codes = [self._code("generator", "torch", name, torch.Generator) for name in states]
        hashes = np.array(list(states.values()), np.uint64)
        return [self._frame(call, phase, np.array(codes, np.int32), data=hashes)]

    def _of_tensors(
        self, kind: VariableKind, owner: str, call: OpenCall, found: list[tuple[str, Tensor]]
    ) -> Iterator[Frame]:
        found = found[:MAX_TENSORS]
        if not found:
            return
        codes = [self._code(kind, owner, path, type(tensor)) for path, tensor in found]
        tensors = [local(tensor.detach()) for _, tensor in found]
        columns = self._read(tensors, self._wants[kind])
        yield self._frame(call, "end", np.array(codes, np.int32), **columns)

    def _of_samples(
        self, owner: str, call: OpenCall, found: list[tuple[str, Tensor]], phase: Phase
    ) -> Iterator[Frame]:
        """Yield the frames of the samples in some tensors."""
        told = [one for one in found if is_comparable(one[1]) and _tells_samples(one[1])]
        for path, tensor in told[:MAX_TOLD]:
            samples = picked(tensor, len(tensor))
            keys = None
            if samples is not None:
                keys = keys_of(samples, tensor.detach(), self._readings, DeviceReader.HOST)
            if keys is not None:
                codes = np.full(
                    len(keys), self._code("sample", owner, path, str(tensor.dtype)), np.int32
                )
                yield self._frame(call, phase, codes, data=keys)

    def _read(self, tensors: list[Tensor], names: frozenset[str]) -> dict[str, Array]:
        """Return the columns among *names*; the numbers of a device arrive in them later."""
        columns: dict[str, Array] = {}
        if "data" in names:
            columns["data"] = np.zeros(len(tensors), np.uint64)
        if "value" in names:
            columns["value"] = np.array([tensor.numel() for tensor in tensors], np.float64)
        ranges = np.full((len(RANGE), len(tensors)), math.nan)
        columns |= {name: row for name, row in zip(RANGE, ranges, strict=True) if name in names}
        reads_ranges = not names.isdisjoint(RANGE)
        by_device: dict[torch.device, list[int]] = {}
        for place, tensor in enumerate(tensors):
            by_device.setdefault(tensor.device, []).append(place)
        for device, places in by_device.items():
            if device.type == "meta":
                continue
            parts = [_part(tensors[place]) for place in places]
            is_host = device.type == DeviceReader.HOST
            if "data" in names and is_host:
                columns["data"][places] = [hash_tensor(part, self._problems) for part in parts]
            elif "data" in names:
                vector, finish = self._hasher.hashes(parts)

                def hashed(
                    numbers: Array,
                    at: list[int] = places,
                    finish: Callable[[Array], Array] = finish,
                ) -> None:
                    columns["data"][at] = finish(numbers)

                self._readings.add(vector, hashed)
            if reads_ranges and is_host:
                ranges[:, places] = np.transpose([host_range(part) for part in parts])
            elif reads_ranges:

                def ranged(numbers: Array, at: list[int] = places) -> None:
                    ranges[:, at] = finished_ranges(numbers).T

                self._readings.add(device_ranges(parts), ranged)
        return columns

    def _frame(self, call: OpenCall, phase: Phase, codes: Array, **columns: Array) -> Frame:
        return Frame(
            call=call.call,
            phase=phase,
            sequence=self._next(),
            context=call.context,
            variables=codes,
            columns=columns,
        )

    def _padding_of(self, owner: str, module: torch.nn.Module) -> int | None:
        """Return what the embeddings of a root module take for padding, if they agree on it."""
        if owner not in self._paddings:
            found = {
                part.padding_idx
                for part in module.modules()
                if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None
            }
            self._paddings[owner] = found.pop() if len(found) == 1 else None
        return self._paddings[owner]

    def _pair(self, kind: VariableKind, target: Target, given: Given) -> int:
        return self._code(kind, given.owner, given.path, target.operation)

    def _code(self, kind: VariableKind, owner: str, name: str, type_: type | str) -> int:
        key = (kind, owner, name, type_)
        code = self._codes.get(key)
        if code is None:
            text = type_ if isinstance(type_, str) else class_path(type_)
            variable = Variable(kind=kind, name=name, owner=owner, type=text)
            code = self._codes[key] = self._catalog.variables.code(variable)
        return code


def _numpy_state() -> int:
    told: Any = np.random.get_state(legacy=False)
    # The user may have put another generator in the place of the usual one, with another state.
    key = told["state"].pop("key", None)
    return hash_bytes((b"" if key is None else key.tobytes()) + repr(told).encode())


def _python_state() -> int:
    _, key, gauss = random.getstate()
    return hash_bytes(np.array(key, np.uint32).tobytes() + repr(gauss).encode())


_ROLES: tuple[tuple[Any, VariableKind], ...] = (
    ("data", "batch"),
    ("data", "loader"),
    ("data", "stored"),
    ("forward", "input"),
    ("forward", "generator"),
    ("forward", "alias"),
    ("forward", "evaluation"),
    ("backward", "target"),
    ("backward", "padding"),
    ("backward", "sample"),
)
_COMPARED: tuple[VariableKind, ...] = ("target", "padding", "sample")
"""Kinds that compare targets with what models were given."""


def _tensors(value: Any, path: str = "", depth: int = 0) -> list[tuple[str, Tensor]]:
    """Return the tensors in nested containers, each with its path."""
    if isinstance(value, Tensor):
        return [(path, value)]
    if depth == _MAX_DEPTH:
        return []
    if isinstance(value, Mapping):
        items = [(str(name), value[name]) for name in list(value)[:MAX_TENSORS]]
    elif isinstance(value, (list, tuple)):
        items = [(str(number), one) for number, one in enumerate(value[:MAX_TENSORS])]
    else:
        return []
    prefix = f"{path}." if path else ""
    return [
        found
        for name, one in items
        if not isinstance(one, (int, float, str))
        for found in _tensors(one, prefix + name, depth + 1)
    ]


def _tells_samples(tensor: Tensor) -> bool:
    """Return whether the rows of a tensor differ as samples do: of whole numbers, longer ones."""
    return tensor.is_floating_point() or tensor.numel() >= MIN_NUMBERS * len(tensor)


def _part(tensor: Tensor) -> Tensor:
    """Return what of a tensor is fingerprinted: all of it, or slices where it is large."""
    if tensor.layout is not torch.strided or tensor.nbytes <= MAX_BYTES or tensor.is_quantized:
        return tensor
    if not tensor.is_contiguous():
        # Another order of the dimensions is often contiguous: channels come last, or first.
        tensor = tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    if tensor.is_contiguous():
        length = tensor.numel() // _SLICES
        size = MAX_BYTES // _SLICES // tensor.itemsize
        return tensor.view(-1)[: _SLICES * length].view(_SLICES, length)[:, :size]
    while tensor.numel() * tensor.itemsize > MAX_BYTES:
        # Every so many elements of the longest dimension.
        dim = max(range(tensor.dim()), key=tensor.size)
        stride = -(-tensor.numel() * tensor.itemsize // MAX_BYTES)
        wanted = max(1, tensor.size(dim) // stride)
        tensor = tensor.narrow(dim, 0, wanted * (tensor.size(dim) // wanted))
        tensor = tensor.unflatten(dim, (wanted, -1)).select(dim + 1, 0)
    return tensor
