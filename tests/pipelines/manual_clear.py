"""Gradients are cleared by hand and batches are drawn by hand: no zero_grad, no DataLoader."""

from __future__ import annotations

import argparse

import torch
from digits import load_digits
from torch import nn, optim

BUGS = {
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "cleared_before_step": (0, "clear|zero_grad|no gradient|gradient .*None"),
    "detached_encoder": (
        0,
        "detach|(no|without) gradient|gradient .*(None|missing)|not reach|graph",
    ),
    "lr_zero": (0, r"\blr\b|learning rate"),
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
    images, labels = train_set.tensors

    encoder = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Flatten())
    head = nn.Linear(1152, 10)
    model = nn.ModuleDict({"encoder": encoder, "head": head})
    loss_function = nn.CrossEntropyLoss()
    optimizer = optim.NAdam(model.parameters(), lr=0.0 if args.bug == "lr_zero" else 2e-3)

    def clear_gradients():
        for parameter in model.parameters():
            parameter.grad = None

    steps_per_epoch = len(images) // args.batch_size
    for epoch in range(1, args.epochs + 1):
        total = 0.0
        for _ in range(steps_per_epoch):
            batch = torch.randint(len(images), (args.batch_size,))
            features = encoder(images[batch])
            if args.bug == "detached_encoder":
                features = features.detach()
            loss = loss_function(head(features), labels[batch])
            if args.bug not in ("no_zero_grad", "cleared_before_step"):
                clear_gradients()
            loss.backward()
            if args.bug == "cleared_before_step":
                clear_gradients()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / steps_per_epoch:.4f}")


if __name__ == "__main__":
    main()
