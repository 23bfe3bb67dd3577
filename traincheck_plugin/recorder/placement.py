"""How the copies of the parameters on the ranks of a run are meant to relate.

What distributes a model says so: DistributedDataParallel, FullyShardedDataParallel, the placements
of a DTensor, the mark of Megatron. Of anything else nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from traincheck_plugin.recorder.layout import DDP, FSDP, alive, read_layout
from traincheck_plugin.vocabulary import Array, Placement

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
    for path, thing in alive((DDP, FSDP, *_AVERAGERS)):
        if path == DDP:
            ignored = thing.parameters_to_ignore
            found = {id(p) for name, p in thing.module.named_parameters() if name not in ignored}
            # With fewer ranks it is one of several dimensions, and the others hold other shards:
            # where all that share the data are known, these are compared among themselves.
            size = thing.process_group.size()
            spans_all = size in (world_size, read_layout().num_data)
            (replicated if spans_all else local).update(found)
        elif path == FSDP:
            local.update(map(id, thing.parameters()))
        else:
            is_averaged = True
    return (set(), local | replicated) if is_averaged else (replicated, local)
