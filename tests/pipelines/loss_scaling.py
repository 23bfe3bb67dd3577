"""float16 with a gradient scaler that starts too high: the first steps are skipped."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "scheduler_steps_when_skipped": (0, r"schedul|\blr\b|learning rate|skip"),
    "scaler_disabled": (0, "scal"),
    "stepped_twice": (
        1,
        "step.*(twice|2|two|again|more)|backward|no gradient|(twice|second).*step",
    ),
    "same_order_each_epoch": (15, "order|shuffl|batch|same data|repeat"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    precision = "fp16"
    scaler = torch.amp.GradScaler(
        "cpu",
        init_scale=2.0**22,
        growth_interval=1000,
        enabled=precision == "float16" if args.bug == "scaler_disabled" else precision == "fp16",
    )
    scheduler = optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.1, total_iters=args.epochs * len(loader)
    )
    for epoch in range(1, args.epochs + 1):
        model.train()
        if args.bug == "same_order_each_epoch":
            torch.manual_seed(args.seed)
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scale = scaler.get_scale()
            scaler.update()
            skipped = scaler.get_scale() < scale
            if args.bug == "stepped_twice" and not skipped:
                optimizer.step()
            if not skipped or args.bug == "scheduler_steps_when_skipped":
                scheduler.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
