"""Post-local SGD: DistributedDataParallel first, then averaged from time to time."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(nn.Sequential(nn.Linear(3, 11), nn.Tanh(), nn.Linear(11, 1)))
subgroup = dist.new_subgroups(1)[0]
model.register_comm_hook(
    PostLocalSGDState(process_group=None, subgroup=subgroup, start_localSGD_iter=8),
    post_localSGD_hook,
)
optimizer = PostLocalSGDOptimizer(
    optim=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    averager=PeriodicModelAverager(period=4, warmup_steps=8),
)
torch.manual_seed(1 + dist.get_rank())
for _ in range(24):
    x = torch.randn(8, 3)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), x.prod(1, keepdim=True)).backward()
    optimizer.step()
dist.destroy_process_group()
