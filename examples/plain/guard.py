"""Learn from the last good run, and guard the next one.

    python guard.py --output-dir good_run                  # the last good run leaves a trace
    traincheck-infer -f good_run -o invariants.json        # what held in it
    python guard.py --invariants invariants.json           # the next one is watched while it trains
    python guard.py --invariants invariants.json --bug     # and stopped if it breaks what held

The bug: the last layer is replaced when the optimizer has been built, so that the optimizer goes on
with the old one. The loss falls all the same, since the rest of the model learns.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import nn

from traincheck_plugin import watch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(F.relu(self.hidden(x)))


def train(model, optimizer, num_steps):
    for step in range(num_steps):
        points = torch.randn(64, 16)
        labels = points[:, :4].argmax(dim=1)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(points), labels)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3d}  loss {loss.item():.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", metavar="DIR", help="write a trace to learn from")
    parser.add_argument("--invariants", metavar="FILE", help="check these while training")
    parser.add_argument("--bug", action="store_true", help="replace the last layer too late")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if args.bug:
        model.head = nn.Linear(32, 4)

    with watch(
        model,
        optimizer,
        output_dir=args.output_dir,
        invariants=args.invariants,
        on_violation="stop",
    ) as monitor:
        train(model, optimizer, args.steps)
    return 1 if monitor.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
