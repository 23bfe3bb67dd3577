"""FullyShardedDataParallel with the original parameters."""

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

warnings.filterwarnings("ignore", category=FutureWarning)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = FullyShardedDataParallel(
    nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 2)),
    use_orig_params=True,
    device_id=torch.device("cpu"),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
torch.manual_seed(1 + dist.get_rank())
for _ in range(24):
    x = torch.randn(8, 6)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), x[:, :2]).backward()
    optimizer.step()
dist.destroy_process_group()
