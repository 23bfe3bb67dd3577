"""Accelerate accumulates gradients over four batches; the last window of an epoch is shorter."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

ACCUMULATE = 4
BUGS = {
    "zero_grad_before_backward": (0, "clear|zero_grad|zeroed"),
    "model_zero_grad": (0, "clear|zero_grad|zeroed"),
    "loss_divided_twice": (0, "scale|divi|loss|norm|smaller"),
    "loader_not_prepared": (16, "accumul|micro|backward|clear|left|step"),
    "scheduler_not_prepared": (0, r"schedul|\blr\b|learning rate"),
    "scheduler_stepped_twice": (0, r"schedul|\blr\b|learning rate"),
    "step_outside_accumulate": (0, "accumul|micro|backward|window"),
    "clipped_each_micro_batch": (0, "each micro-batch"),
}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.body(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    bug = args.bug
    set_seed(args.seed)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    train_set, _ = load_digits(1056)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Classifier()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    num_steps = args.epochs * -(-len(loader) // ACCUMULATE)
    scheduler = optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=num_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    if bug != "loader_not_prepared":
        loader = accelerator.prepare(loader)
    if bug != "scheduler_not_prepared":
        scheduler = accelerator.prepare(scheduler)

    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            outside = bug == "step_outside_accumulate"
            with nullcontext() if outside else accelerator.accumulate(model):
                if bug == "zero_grad_before_backward":
                    optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                total += loss.item()
                if bug == "loss_divided_twice":
                    loss = loss / ACCUMULATE
                accelerator.backward(loss)
                if accelerator.sync_gradients or bug == "clipped_each_micro_batch":
                    accelerator.clip_grad_norm_(model.parameters(), 0.2)
                optimizer.step()
                scheduler.step()
                if bug == "scheduler_stepped_twice":
                    scheduler.step()
                if bug == "model_zero_grad":
                    model.zero_grad()
                elif bug != "zero_grad_before_backward":
                    optimizer.zero_grad()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
