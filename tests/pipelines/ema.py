"""A network trains in float16 with a gradient scaler; an average of its weights is evaluated."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "average_is_model": (0, "average|same (object|parameter|tensor|storage)|shared|alias|copy"),
    "clip_before_unscale": (0, "scale"),
    "average_not_updated": (
        0,
        "did not change|never change|not (updated|changed)|(updated|changed) 0|unchanged|constant",
    ),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "average_in_training_mode": (20, r"\beval\b"),
}


def make_model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1152, 10),
    )


@torch.no_grad()
def update_average(average, model, decay=0.9):
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(value)


def train(model, average, loader, optimizer, scaler, bug):
    model.train()
    total = 0.0
    for images, labels in loader:
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        if bug != "clip_before_unscale":
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if bug != "average_not_updated":
            update_average(average, model)
        total += loss.item()
    return total / len(loader)


@torch.no_grad()
def evaluate(average, loader, bug):
    if bug != "average_in_training_mode":
        average.eval()
    losses = [F.cross_entropy(average(images), labels).item() for images, labels in loader]
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=64)

    model = make_model()
    average = model if args.bug == "average_is_model" else copy.deepcopy(model)
    optimizer = optim.RMSprop(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, average, train_loader, optimizer, scaler, args.bug)
        test_loss = evaluate(average, test_loader, args.bug)
        print(f"epoch {epoch} train loss {train_loss:.4f} test loss {test_loss:.4f}")


if __name__ == "__main__":
    main()
