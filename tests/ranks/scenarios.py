"""Bugs that show only on several ranks, each with its clean twin; run by torchrun.

Usage: scenarios.py FOLDER TWINS NAME...

Each name is run as each of the twins (``clean,buggy``), recorded in ``FOLDER/NAME-TWIN/trace`` and
watched with the rules of ``FOLDER/NAME.json``, where that exists: what the watching found goes to
``FOLDER/NAME-TWIN/found_RANK.json``.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from traincheck_plugin import watch

STEPS = 24
BROKEN = 12
"""The step at which what breaks in the middle of a run does so."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.outer = nn.Linear(8, 1)

    def forward(self, x):
        return self.outer(torch.relu(self.norm(self.inner(x))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Counting(nn.Module):
    """Keeps the mean of its outputs, as codebooks and teachers do."""

    def __init__(self, *, is_synchronised):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.is_synchronised = is_synchronised

    def forward(self, x):
        y = self.linear(x)
        mean = y.detach().mean()
        if self.is_synchronised:
            dist.all_reduce(mean)
        self.mean.lerp_(mean, 0.1)
        return y


def batches():
    """Yield what this rank is to see: something else than the others."""
    generator = torch.Generator().manual_seed(100 + dist.get_rank())
    while True:
        yield torch.randn(8, 4, generator=generator)


def train(
    forward,
    optimizer,
    *,
    num_steps=STEPS,
    data=None,
    begins=lambda step: None,
    context=lambda step: nullcontext(),
    after_backward=lambda step: None,
    skips=lambda step: False,
):
    for step, x in zip(range(num_steps), data or batches(), strict=False):
        begins(step)
        with context(step):
            optimizer.zero_grad()
            (forward(x) - x.sum(1, keepdim=True)).square().mean().backward()
            after_backward(step)
            if not skips(step):
                optimizer.step()


def ddp_and_sgd(**options):
    model = Net()
    ddp = DistributedDataParallel(model, **options)
    return model, ddp, torch.optim.SGD(ddp.parameters(), lr=0.05)


def raw_module_called(*, is_buggy):
    model, ddp, optimizer = ddp_and_sgd()
    train(model if is_buggy else ddp, optimizer)


def forward_through_module(*, is_buggy):
    _, ddp, optimizer = ddp_and_sgd()

    def forward(x):
        # As in a branch that is taken now and then.
        return ddp.module(x) if is_buggy and forward.step >= BROKEN else ddp(x)

    def begins(step):
        forward.step = step

    train(forward, optimizer, begins=begins)


def no_sync_around_every_step(*, is_buggy):
    _, ddp, optimizer = ddp_and_sgd()
    train(ddp, optimizer, context=lambda _: ddp.no_sync() if is_buggy else nullcontext())


def one_rank_skips_a_step(*, is_buggy):
    _, ddp, optimizer = ddp_and_sgd()
    skips = is_buggy and dist.get_rank() == 1
    train(ddp, optimizer, skips=lambda step: skips and step == BROKEN)


def unfrozen_after_wrapping(*, is_buggy):
    model = Net()
    model.inner.requires_grad_(False)
    if not is_buggy:
        model.inner.requires_grad_(True)
    ddp = DistributedDataParallel(model)
    model.inner.requires_grad_(True)
    train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.05))


def different_initial_weights(*, is_buggy):
    torch.manual_seed(dist.get_rank() if is_buggy else 0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def average(_):
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
            parameter.grad /= dist.get_world_size()

    train(model, optimizer, after_backward=average)


def buffers_diverge(*, is_buggy):
    model = Counting(is_synchronised=not is_buggy)
    ddp = DistributedDataParallel(model, broadcast_buffers=False)
    train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.05))


def cast_and_cast_back(*, is_buggy):
    model, ddp, optimizer = ddp_and_sgd()

    def begins(step):
        if is_buggy and step == BROKEN:
            # New tensors in the place of the old ones lose the hooks that average.
            for module in model.modules():
                for name, parameter in list(module.named_parameters(recurse=False)):
                    new = parameter.detach().double().float()
                    setattr(module, name, nn.Parameter(new))
            optimizer.param_groups[0]["params"] = list(model.parameters())

    train(ddp, optimizer, begins=begins)


def clipping_on_one_rank(*, is_buggy):
    model, ddp, optimizer = ddp_and_sgd()

    def clip(step):
        if not is_buggy or dist.get_rank() == 0 or step < BROKEN:
            nn.utils.clip_grad_norm_(model.norm.parameters(), 1e-3)

    train(ddp, optimizer, after_backward=clip)


def untied_on_one_rank(*, is_buggy):
    model = Tied()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)

    def begins(step):
        if is_buggy and step == BROKEN and dist.get_rank() == 1:
            model.second.weight = nn.Parameter(model.first.weight.detach().clone())
            optimizer.add_param_group({"params": [model.second.weight]})

    train(ddp, optimizer, begins=begins)


def optimizer_from_before_sharding(*, is_buggy):
    model = Net()
    before = torch.optim.SGD(model.parameters(), lr=0.05)
    fully_shard(model)
    train(model, before if is_buggy else torch.optim.SGD(model.parameters(), lr=0.05))


DATA = torch.arange(96 * 4).view(96, 4) / 100


def same_data_on_every_rank(*, is_buggy):
    _, ddp, optimizer = ddp_and_sgd()
    sampler = DistributedSampler(DATA)
    loader = (
        DataLoader(DATA, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
        if is_buggy
        else DataLoader(DATA, batch_size=8, sampler=sampler)
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        train(ddp, optimizer, data=loader)


def sampler_without_set_epoch(*, is_buggy):
    _, ddp, optimizer = ddp_and_sgd()
    sampler = DistributedSampler(DATA)
    loader = DataLoader(DATA, batch_size=8, sampler=sampler)
    for epoch in range(4):
        if not is_buggy:
            sampler.set_epoch(epoch)
        train(ddp, optimizer, data=loader)


def same_dropout_seed(*, is_buggy):
    model = Net()
    ddp = DistributedDataParallel(nn.Sequential(nn.Dropout(0.2), model))
    torch.manual_seed(0 if is_buggy else dist.get_rank())
    train(ddp, torch.optim.SGD(ddp.parameters(), lr=0.05))


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        raw_module_called,
        forward_through_module,
        no_sync_around_every_step,
        one_rank_skips_a_step,
        unfrozen_after_wrapping,
        different_initial_weights,
        buffers_diverge,
        cast_and_cast_back,
        clipping_on_one_rank,
        untied_on_one_rank,
        optimizer_from_before_sharding,
        same_data_on_every_rank,
        sampler_without_set_epoch,
        same_dropout_seed,
    )
}


def main():
    folder, twins, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    for name in names:
        rules = Path(folder, f"{name}.json")
        for twin in twins.split(","):
            place = Path(folder, f"{name}-{twin}")
            torch.manual_seed(0)
            with watch(
                output_dir=place / "trace",
                invariants=rules if rules.exists() else None,
                log=False,
            ) as monitor:
                SCENARIOS[name](is_buggy=twin == "buggy")
            found = {
                "problems": monitor.report.problems,
                "violations": [
                    {
                        "rule": violation.invariant.text_description,
                        "relation": violation.invariant.relation,
                        "severity": violation.severity,
                        "message": violation.message,
                        "step": violation.step,
                        "subjects": violation.cause.subjects if violation.cause else (),
                    }
                    for violation in monitor.report.violations
                ],
            }
            (place / f"found_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
