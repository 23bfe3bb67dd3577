"""Training on two ranks of which rank 1 ends in an unusual way; run by torchrun or by hand.

Usage: endings.py FOLDER HOW
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from traincheck_plugin import watch


def main():
    folder, how = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    begin = time.monotonic()
    monitor = watch(model, optimizer, output_dir=folder / "trace", invariants="default", log=False)
    try:
        with monitor:
            for step in range(24):
                if rank == 1 and step == 10:
                    if how == "raises":
                        raise ValueError("no")
                    if how == "leaves":
                        break
                    if how == "killed":
                        time.sleep(2)  # what was handed over is on the disk by then
                        os.kill(os.getpid(), signal.SIGKILL)
                    if how == "hangs":
                        time.sleep(60)
                optimizer.zero_grad()
                model(torch.ones(2, 4)).mean().backward()
                optimizer.step()
    except ValueError:
        pass
    found = {
        "seconds": time.monotonic() - begin,
        "steps": monitor.report.num_steps,
        "problems": monitor.report.problems,
        "violations": [violation.message for violation in monitor.report.violations],
    }
    (folder / f"found_{rank}.json").write_text(json.dumps(found))
    os._exit(0) if how == "hangs" else None


if __name__ == "__main__":
    main()
