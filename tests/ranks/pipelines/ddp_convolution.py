"""DistributedDataParallel around batch normalisation, with AdamW, clipping and a schedule."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 4, 3),
    nn.BatchNorm2d(4),
    nn.ReLU(),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.LazyLinear(3),
)
model(torch.zeros(2, 1, 6, 6))
model = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=24)
torch.manual_seed(1 + dist.get_rank())
for _ in range(24):
    images = torch.randn(8, 1, 6, 6)
    labels = images.mean((1, 2, 3)).mul(3).round().clamp(-1, 1).long() + 1
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
dist.destroy_process_group()
