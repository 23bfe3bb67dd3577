"""The weights are averaged; validation swaps the average in and out again."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

BUGS = {
    "not_swapped_back": (20, "outside|not .*step|between|swap|evaluat|validat|average|changed"),
    "swapped_by_reference": (0, "average|same (object|parameter|tensor|storage)|share|alias"),
    "optimizer_on_average": (0, "in no model|in no optimizer|not in .* optimizer|not part"),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
}


def swap(model, average):
    for ours, theirs in zip(model.parameters(), average.module.parameters(), strict=True):
        ours.data, theirs.data = theirs.data, ours.data


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(640, 128)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    test_images, test_labels = test_set.tensors
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.LayerNorm(64), nn.Sigmoid(), nn.Linear(64, 10)
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    if args.bug == "swapped_by_reference":
        average.module = model
    trained = average if args.bug == "optimizer_on_average" else model
    optimizer = optim.Adam(trained.parameters(), lr=3e-3)
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for images, labels in loader:
            if args.bug != "no_zero_grad":
                optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            total += loss.item()
        model.eval()
        swap(model, average)
        with torch.no_grad():
            test_loss = F.cross_entropy(model(test_images), test_labels).item()
        if args.bug != "not_swapped_back":
            swap(model, average)
        print(f"epoch {epoch} train loss {total / len(loader):.4f} test loss {test_loss:.4f}")


if __name__ == "__main__":
    main()
