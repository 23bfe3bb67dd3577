"""DistributedDataParallel that adds up micro-batches first, and has parts that are not used."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Experts(nn.Module):
    """One of two branches runs: which one depends on the batch."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 20)

    def forward(self, tokens, branch):
        return self.head(torch.tanh(self.branches[branch](self.embed(tokens))))


dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(Experts(), find_unused_parameters=True)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
torch.manual_seed(1 + dist.get_rank())
for step in range(24):
    for micro_step in range(3):
        with model.no_sync() if micro_step < 2 else nullcontext():
            tokens = torch.randint(20, (4, 5))
            logits = model(tokens, step % 2)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()) / 3
            loss.backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
