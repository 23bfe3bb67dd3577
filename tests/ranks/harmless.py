"""Trains the same on each rank plainly and watched; prints what must not depend on that."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from traincheck_plugin import watch


def train():
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    torch.manual_seed(1 + dist.get_rank())
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 4)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item().hex())
    return losses, torch.get_rng_state().tolist()


def main():
    dist.init_process_group("gloo")
    world = dist.distributed_c10d._world
    told = []
    for is_watched in (False, True):
        groups = len(world.pg_map), world.group_count
        monitor = watch(invariants="default", every_n_steps=1, log=False)
        with monitor if is_watched else nullcontext():
            told.append(train())
        assert (len(world.pg_map), world.group_count) == groups
    assert told[0] == told[1]
    assert monitor.report.violations == ()
    assert monitor.report.problems == ()
    triggered = {
        outcome.invariant.relation: outcome.num_triggered
        for outcome in monitor.report.result.outcomes
        if outcome.num_triggered
    }
    assert triggered["RankConsistencyRelation"] > 20, triggered
    assert "traincheck-ranks" not in [thread.name for thread in threading.enumerate()]
    dist.destroy_process_group()
    print("same")  # noqa: T201


if __name__ == "__main__":
    main()
