"""Where a process stands in a distributed training: which data it sees, which parts it works on.

What distributes a model says so: DistributedDataParallel, FullyShardedDataParallel, `fully_shard`,
a DeviceMesh with names, the globals of Megatron. Of anything else nothing is assumed, and nothing
is imported that is not there already.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

DDP = "torch.nn.parallel.distributed.DistributedDataParallel"
FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
_SHARDED = "torch.distributed.fsdp.FSDPModule"
_MESH = "torch.distributed.device_mesh.DeviceMesh"
_MEGATRON = ("megatron.core.parallel_state", "megatron.core.mpu", "megatron.mpu")

_DATA = frozenset(
    {"dp", "ddp", "fsdp", "hsdp", "dp_replicate", "dp_shard", "replicate", "shard"}
    | {"data", "data_parallel"}
)
_TENSOR = frozenset(
    {"tp", "mp", "cp", "sp", "tensor", "tensor_parallel", "model", "model_parallel"}
    | {"context_parallel", "sequence_parallel"}
)
_PIPELINE = frozenset(("pp", "pipe", "pipeline", "pipeline_parallel"))
"""Names that dimensions of a DeviceMesh go by. Along the second, ranks work on the same samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a process stands; -1 where that is not known.

    Attributes:
        data: which part of the data it sees. Ranks that differ in nothing else are replicas of one
            another, or hold shards of one replica's state.
        num_data: how many parts there are.
        tensor: which part of each layer, or of each sample, it works on.
        pipeline: which layers it works on.
    """

    data: int = -1
    num_data: int = -1
    tensor: int = -1
    pipeline: int = -1


UNKNOWN = Layout()


def read_layout() -> Layout:
    """Return where this process stands now."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return UNKNOWN
    size = distributed.get_world_size()
    if size == 1:
        return UNKNOWN
    found = _of_megatron()
    if found is not None:
        return found
    meshes, is_sharded, spans_all = [], False, None
    for path, thing in alive((DDP, FSDP, _SHARDED, _MESH)):
        if path == _MESH:
            meshes.append(thing)
        elif path == _SHARDED:
            is_sharded = True
        else:
            spans_all = thing.process_group.size() == size and spans_all is not False
    meshes = [mesh for mesh in meshes if mesh.size() == size]
    named = max((m for m in meshes if m.mesh_dim_names), key=lambda m: m.ndim, default=None)
    if named is not None and (named.ndim > 1 or not (is_sharded or spans_all)):
        return _of_mesh(named.mesh_dim_names, tuple(named.shape), named.get_coordinate())
    # One dimension that all ranks share: the data, if something says that it is.
    if spans_all or (is_sharded and spans_all is None and all(m.ndim == 1 for m in meshes)):
        return Layout(data=distributed.get_rank(), num_data=size, tensor=0, pipeline=0)
    return UNKNOWN


def _of_mesh(
    names: Sequence[str], shape: Sequence[int], coordinate: Sequence[int] | None
) -> Layout:
    known = _DATA | _TENSOR | _PIPELINE
    if coordinate is None or not known.issuperset(names):
        return UNKNOWN

    def along(kinds: frozenset[str]) -> tuple[int, int]:
        """Return the number of this process along all dimensions of some kind, and of how many."""
        chosen = [i for i, name in enumerate(names) if name in kinds]
        number = 0
        for i in chosen:
            number = number * shape[i] + coordinate[i]
        return number, math.prod(shape[i] for i in chosen)

    data, num_data = along(_DATA)
    return Layout(
        data=data, num_data=num_data, tensor=along(_TENSOR)[0], pipeline=along(_PIPELINE)[0]
    )


def _of_megatron() -> Layout | None:
    for name in _MEGATRON:
        state = sys.modules.get(name)
        is_ready = getattr(state, "model_parallel_is_initialized", None)
        if state is not None and is_ready is not None and is_ready():
            return Layout(
                data=state.get_data_parallel_rank(),
                num_data=state.get_data_parallel_world_size(),
                tensor=state.get_tensor_model_parallel_rank(),
                pipeline=state.get_pipeline_model_parallel_rank(),
            )
    return None


def alive(paths: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the instances of those classes that are imported, each with the path of its class."""
    classes = {}
    for path in paths:
        module, _, name = path.rpartition(".")
        found = getattr(sys.modules.get(module), name, None)
        if found is not None:
            classes[path] = found
    known: dict[type, str] = {}
    for thing in gc.get_objects():
        kind = type(thing)
        path = known.get(kind, "?")
        if path == "?":
            path = known[kind] = next((p for p, c in classes.items() if issubclass(kind, c)), "")
        if path and thing.__dict__:
            yield path, thing
