"""Where a process stands is told by what distributes the training, and by nothing else."""

from __future__ import annotations

import gc
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from traincheck_plugin.recorder.layout import UNKNOWN, Layout, read_layout

RANK = 6


@pytest.fixture(autouse=True)
def group():
    """Eight processes, of which only one is there."""
    gc.collect()
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=8)
    yield
    gc.collect()
    dist.destroy_process_group()


def mesh_of(*dimensions):
    names = tuple(name for name, _ in dimensions)
    return init_device_mesh("cpu", tuple(size for _, size in dimensions), mesh_dim_names=names)


def test_processes_that_only_share_a_machine():
    assert read_layout() == UNKNOWN


def test_ddp_over_all_ranks():
    model = DistributedDataParallel(nn.Linear(2, 1))

    assert read_layout() == Layout(data=RANK, num_data=8, tensor=0, pipeline=0)
    del model


def test_ddp_over_some_ranks_tells_nothing_of_the_others():
    model = DistributedDataParallel(nn.Linear(2, 1), process_group=dist.new_group([4, 5, 6, 7]))

    assert read_layout() == UNKNOWN
    del model


def test_fully_shard_over_all_ranks():
    model = fully_shard(nn.Linear(8, 8))

    assert read_layout() == Layout(data=RANK, num_data=8, tensor=0, pipeline=0)
    del model


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ((("dp", 4), ("tp", 2)), Layout(data=3, num_data=4, tensor=0, pipeline=0)),
        (
            (("pp", 2), ("dp_replicate", 2), ("tp", 2)),
            Layout(data=1, num_data=2, tensor=0, pipeline=1),
        ),
        (
            (("dp_replicate", 2), ("dp_shard", 2), ("tp", 2)),
            Layout(data=3, num_data=4, tensor=0, pipeline=0),
        ),
        (
            (("data_parallel", 2), ("tensor_parallel", 4)),
            Layout(data=1, num_data=2, tensor=2, pipeline=0),
        ),
        ((("tp", 8),), Layout(data=0, num_data=1, tensor=RANK, pipeline=0)),
        ((("dp", 4), ("experts", 2)), UNKNOWN),
    ],
    ids=str,
)
def test_the_names_of_a_mesh(dimensions, expected):
    mesh = mesh_of(*dimensions)

    assert read_layout() == expected
    del mesh


def test_a_mesh_without_names_may_be_anything():
    mesh = init_device_mesh("cpu", (8,))

    assert read_layout() == UNKNOWN
    del mesh


def test_the_globals_of_megatron(monkeypatch):
    state = SimpleNamespace(
        model_parallel_is_initialized=lambda: True,
        get_data_parallel_rank=lambda: 1,
        get_data_parallel_world_size=lambda: 2,
        get_tensor_model_parallel_rank=lambda: 0,
        get_pipeline_model_parallel_rank=lambda: 1,
    )
    monkeypatch.setitem(sys.modules, "megatron.core.parallel_state", state)

    assert read_layout() == Layout(data=1, num_data=2, tensor=0, pipeline=1)


def test_a_process_alone():
    dist.destroy_process_group()
    assert read_layout() == UNKNOWN
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    assert read_layout() == UNKNOWN
    assert torch.distributed.is_initialized()
