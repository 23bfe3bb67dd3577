"""DistributedDataParallel with a static graph and checkpointed layers, one of them frozen."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 12)
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 2)
        self.stem.requires_grad_(False)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.relu(checkpoint(layer, x, use_reentrant=False))
        return self.out(x)


dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(Deep(), static_graph=True)
optimizer = torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)
torch.manual_seed(1 + dist.get_rank())
for _ in range(24):
    x = torch.randn(8, 5)
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), x[:, :2]).backward()
    optimizer.step()
dist.destroy_process_group()
