"""How the copies of the parameters on the ranks of a run are meant to relate.

What distributes a model says so: DistributedDataParallel, FullyShardedDataParallel, the placements
of a DTensor, the mark of Megatron. Of anything else nothing is assumed.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.events import Array, Placement

_DDP = "torch.nn.parallel.distributed.DistributedDataParallel"
_FSDP = "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel"
_AVERAGERS = (
    "torch.distributed.algorithms.model_averaging.averagers.ModelAverager",
    "torch.distributed.optim.post_localSGD_optimizer.PostLocalSGDOptimizer",
    "accelerate.local_sgd.LocalSGD",
)
"""What lets replicas drift and averages them from time to time."""


def placements(parameters: Sequence[torch.Tensor]) -> Array:
    """Return a `Placement` for each of *parameters*."""
    result = np.full(len(parameters), Placement.UNKNOWN, np.int8)
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return result
    world_size = distributed.get_world_size()
    if world_size == 1:
        return result
    replicated, local = _wrapped(world_size)
    for row, parameter in enumerate(parameters):
        if id(parameter) in local or getattr(parameter, "tensor_model_parallel", False):
            result[row] = Placement.LOCAL
        elif hasattr(parameter, "placements") and hasattr(parameter, "device_mesh"):
            result[row] = _of_dtensor(parameter, world_size)
        elif id(parameter) in replicated:
            result[row] = Placement.REPLICATED
    return result


def _of_dtensor(tensor: Any, world_size: int) -> Placement:
    is_everywhere = tensor.device_mesh.size() == world_size
    if is_everywhere and all(placement.is_replicate() for placement in tensor.placements):
        return Placement.REPLICATED
    return Placement.LOCAL


def _wrapped(world_size: int) -> tuple[set[int], set[int]]:
    """Return the parameters that wrappers replicate on all ranks, and that they keep apart."""
    replicated: set[int] = set()
    local: set[int] = set()
    is_averaged = False
    for path, thing in _alive((_DDP, _FSDP, *_AVERAGERS)):
        if path == _DDP:
            ignored = thing.parameters_to_ignore
            found = {id(p) for name, p in thing.module.named_parameters() if name not in ignored}
            # With fewer ranks it is one of several dimensions, and the others hold other shards.
            spans_all = thing.process_group.size() == world_size
            (replicated if spans_all else local).update(found)
        elif path == _FSDP:
            local.update(map(id, thing.parameters()))
        else:
            is_averaged = True
    return (set(), local | replicated) if is_averaged else (replicated, local)


def _alive(paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
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
