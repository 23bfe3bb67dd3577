"""Rounds of training: after each the smallest weights are pruned, and the others begin again."""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.nn.utils import prune
from torch.utils.data import DataLoader

BUGS = {
    "keys_renamed": (16, "load|state_dict|checkpoint|missing|unexpected"),
    "kept_by_reference": (16, "not copied|reference|same memory"),
}
ROUNDS = 5


def rewind(model, state, bug):
    """Give the weights that are left their first values back; the masks stay."""
    masks = {name: value for name, value in model.state_dict().items() if name.endswith("_mask")}
    state = {**state, **masks}
    if bug == "keys_renamed":
        state = {f"module.{name}": value for name, value in state.items()}
    model.load_state_dict(state, strict=bug != "keys_renamed")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(512)
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    pruned = [(model[1], "weight"), (model[3], "weight")]
    for module, name in pruned:
        prune.identity(module, name)
    state = model.state_dict()
    if args.bug != "kept_by_reference":
        state = copy.deepcopy(state)
    for number in range(1, ROUNDS + 1):
        optimizer = optim.Adam(model.parameters(), lr=2e-3)
        for epoch in range(1, args.epochs + 1):
            total = 0.0
            for images, labels in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                total += loss.item()
            print(f"round {number} epoch {epoch} loss {total / len(loader):.4f}")
        prune.global_unstructured(pruned, prune.L1Unstructured, amount=0.2)
        rewind(model, state, args.bug)


if __name__ == "__main__":
    main()
