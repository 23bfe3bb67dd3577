"""Accelerate trains with bf16 autocast, saves its state, and goes on with new objects."""

from __future__ import annotations

import argparse
import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "optimizer_before_move": (0, "in no optimizer|not in .* optimizer|no longer|in no model"),
    "state_not_loaded": (20, "load|state_dict|checkpoint|missing|state|reset"),
    "only_head_unwrapped": (0, "in no optimizer|not in .* optimizer"),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.GroupNorm(2, 8), nn.SiLU())
        self.head = nn.Linear(1152, 10)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def build(accelerator, bug):
    model = Network()
    held = model.head if bug == "only_head_unwrapped" else model
    optimizer = optim.SGD(held.parameters(), lr=0.05, momentum=0.9)
    if bug == "optimizer_before_move":
        # As moving a model to an XLA device does: its parameters are new objects afterwards.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        model = model.double().float()
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    schedule = optim.lr_scheduler.PolynomialLR(optimizer, total_iters=200)
    return accelerator.prepare(model, optimizer, schedule)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    set_seed(args.seed)

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    train_set, _ = load_digits(640)
    loader = accelerator.prepare(DataLoader(train_set, batch_size=args.batch_size, shuffle=True))
    model, optimizer, schedule = build(accelerator, args.bug)
    with tempfile.TemporaryDirectory() as folder:
        for epoch in range(1, args.epochs + 1):
            model.train()
            total = 0.0
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                if args.bug != "no_zero_grad":
                    optimizer.zero_grad()
                total += loss.item()
            print(f"epoch {epoch} train loss {total / len(loader):.4f}")
            if epoch == 1:
                accelerator.save_state(folder)
                accelerator.free_memory()
                model, optimizer, schedule = build(accelerator, args.bug)
                if args.bug != "state_not_loaded":
                    accelerator.load_state(folder)


if __name__ == "__main__":
    main()
