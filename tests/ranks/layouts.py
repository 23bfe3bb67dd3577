"""Two replicas of a model of which each is split over two ranks; run by torchrun on four.

Usage: layouts.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from traincheck_plugin import watch

STEPS = 16
BROKEN = 9


def train(mesh, *, twin):
    """Train halves of a layer: the ranks of one replica see the same batch, replicas do not."""
    replica, part = mesh.get_coordinate()
    torch.manual_seed(part)
    half = nn.Linear(8, 4)
    model = DistributedDataParallel(half, process_group=mesh.get_group("dp"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0 if twin == "same_data" else replica)
    for step in range(STEPS):
        x = torch.randn(8, 8, generator=generator)
        optimizer.zero_grad()
        # The replicas of the second half, ranks 1 and 3, go their own ways.
        passes_by = twin == "drifting" and step >= BROKEN and part == 1
        (half if passes_by else model)(x).square().mean().backward()
        optimizer.step()


def main():
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for twin in ("reference", "clean", "drifting", "same_data"):
        rules = folder / "rules.json"
        if twin != "reference" and dist.get_rank() == 0 and not rules.exists():
            from traincheck_plugin.inference.infer import infer
            from traincheck_plugin.invariants.jsonl import dump_invariants
            from traincheck_plugin.trace.reader import open_run

            dump_invariants(infer([open_run(folder / "reference")]).invariants, rules)
        dist.barrier()
        with watch(
            output_dir=folder / twin, invariants=rules if rules.exists() else None, log=False
        ) as monitor:
            train(mesh, twin=twin)
        dist.barrier()
        found = {
            "problems": monitor.report.problems,
            "violations": [[v.message, v.step] for v in monitor.report.violations],
        }
        (folder / f"{twin}_{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
