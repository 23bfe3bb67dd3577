"""Gradients of four small batches make a step; the last window of an epoch is shorter.

AdamW with a linear warm-up that starts at a learning rate of zero; gradients are cleared through
the model, after the step.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

ACCUMULATE = 4
WARM_UP_STEPS = 10
BUGS = {
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "zero_grad_each_micro_batch": (0, "clear|zero_grad|zeroed"),
    "step_each_micro_batch": (
        0,
        r"micro|accumul|backwards? .*step|step.*(every|each|after).*(backward|batch)",
    ),
    "optimizer_before_replacement": (
        0,
        "in no optimizer|not in .* optimizer|no longer|not part of|of no module",
    ),
    "scheduler_never_stepped": (1, r"schedul|\blr\b|learning rate"),
}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.LayerNorm(128), nn.GELU())
        self.head = nn.Linear(128, 20)

    def forward(self, x):
        return self.head(self.body(x))


def train(model, loader, optimizer, scheduler, bug):
    model.train()
    total = 0.0
    for index, (images, labels) in enumerate(loader, start=1):
        loss = F.cross_entropy(model(images), labels)
        (loss / ACCUMULATE).backward()
        total += loss.item()
        ends_window = index % ACCUMULATE == 0 or index == len(loader)
        if ends_window or bug == "step_each_micro_batch":
            optimizer.step()
            if bug != "scheduler_never_stepped":
                scheduler.step()
        if (ends_window and bug != "no_zero_grad") or bug == "zero_grad_each_micro_batch":
            model.zero_grad()
    return total / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(1000)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)

    model = Classifier()
    if args.bug != "optimizer_before_replacement":
        model.head = nn.Linear(128, 10)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    if args.bug == "optimizer_before_replacement":
        model.head = nn.Linear(128, 10)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, step / WARM_UP_STEPS))

    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, loader, optimizer, scheduler, args.bug)
        print(f"epoch {epoch} train loss {train_loss:.4f} lr {scheduler.get_last_lr()[0]:.6f}")


if __name__ == "__main__":
    main()
