"""The backbone joins the optimizer after the first epoch; each of two losses is propagated.

An auxiliary head on the backbone predicts whether a digit is odd; its loss is propagated first.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "never_unfrozen": (20, "requires_grad|frozen"),
    "unfrozen_not_added": (20, "in no optimizer|not in .* optimizer"),
    "zero_grad_between_losses": (0, "clear|zero_grad|zeroed"),
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "not_shuffled": (0, "shuffle|order"),
}


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU())
        self.digit = nn.Linear(64, 10)
        self.parity = nn.Linear(64, 1)

    def forward(self, x):
        features = self.backbone(x)
        return self.digit(features), self.parity(features).squeeze(1)


def train(model, loader, optimizer, bug):
    model.train()
    total = 0.0
    for images, labels in loader:
        if bug != "no_zero_grad":
            optimizer.zero_grad(set_to_none=False)
        digits, parities = model(images)
        parity_loss = F.binary_cross_entropy_with_logits(parities, (labels % 2).float())
        parity_loss.backward(retain_graph=True)
        if bug == "zero_grad_between_losses":
            optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(digits, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, _ = load_digits(640)
    shuffles = args.bug != "not_shuffled"
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=shuffles)

    model = TwoHeads()
    model.backbone.requires_grad_(False)
    heads = [*model.digit.parameters(), *model.parity.parameters()]
    optimizer = optim.Adam(heads, lr=3e-3)

    for epoch in range(1, args.epochs + 1):
        if epoch == 2:
            if args.bug != "never_unfrozen":
                model.backbone.requires_grad_(True)
            if args.bug != "unfrozen_not_added":
                optimizer.add_param_group({"params": model.backbone.parameters(), "lr": 1e-3})
        train_loss = train(model, loader, optimizer, args.bug)
        print(f"epoch {epoch} train loss {train_loss:.4f}")


if __name__ == "__main__":
    main()
