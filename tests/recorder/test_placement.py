"""What distributes a model tells how its parameters on other ranks relate."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from traincheck_plugin.recorder.placement import placements
from traincheck_plugin.vocabulary import Placement


@pytest.fixture
def group():
    """Several processes of which only this one is there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    gc.collect()
    dist.destroy_process_group()


def of(*tensors):
    return [Placement(int(one)) for one in placements(list(tensors))]


def test_a_process_alone_knows_of_no_others():
    assert of(nn.Parameter(torch.zeros(2))) == [Placement.UNKNOWN]


def test_what_ddp_holds_is_replicated_but_for_what_it_ignores(group):
    model = nn.Linear(2, 1)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ["bias"])
    ddp = DistributedDataParallel(model)
    other = nn.Parameter(torch.zeros(2))

    assert of(ddp.module.weight, model.bias, other) == [
        Placement.REPLICATED,
        Placement.UNKNOWN,
        Placement.UNKNOWN,
    ]


def test_what_ddp_replicates_on_some_ranks_only_is_not_compared_with_all(group):
    some = dist.new_group([0, 1])
    ddp = DistributedDataParallel(nn.Linear(2, 1), process_group=some)

    assert of(ddp.module.weight) == [Placement.LOCAL]


def test_what_ddp_replicates_on_all_ranks_that_share_the_data_is_replicated(group):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    ddp = DistributedDataParallel(nn.Linear(2, 1), process_group=mesh.get_group("dp"))

    assert of(ddp.module.weight) == [Placement.REPLICATED]


def test_replicas_that_are_averaged_from_time_to_time_may_drift(group):
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

    ddp = DistributedDataParallel(nn.Linear(2, 1))
    averager = PeriodicModelAverager(period=4)

    assert of(ddp.module.weight) == [Placement.LOCAL]
    del averager


def test_distributed_tensors_know_their_placement(group):
    mesh = init_device_mesh("cpu", (4,))
    whole = DTensor.from_local(torch.zeros(2), mesh, [Replicate()])
    part = DTensor.from_local(torch.zeros(2), mesh, [Shard(0)])

    assert of(whole, part) == [Placement.REPLICATED, Placement.LOCAL]


def test_what_is_replicated_in_one_dimension_only_is_not_compared_with_all(group):
    mesh = init_device_mesh("cpu", (2, 2))
    tensor = DTensor.from_local(torch.zeros(2), mesh, [Replicate(), Shard(0)])

    assert of(tensor) == [Placement.LOCAL]


def test_the_mark_of_megatron_counts(group):
    parameter = nn.Parameter(torch.zeros(2))
    parameter.tensor_model_parallel = True

    assert of(parameter) == [Placement.LOCAL]
