"""An LSTM reads digits row by row: SGD with momentum, gradients clipped by norm, dropout."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

MAX_NORM = 0.25
BUGS = {
    "no_zero_grad": (1, "clear|zero_grad|zeroed"),
    "frozen_encoder": (0, "requires_grad|frozen"),
    "step_before_backward": (
        0,
        "(before|without|no|after|follow).* backward|backward.*(before|after)",
    ),
    "other_model_optimizer": (
        0,
        "in no optimizer|not in .* optimizer|not part of|of no module|other model",
    ),
    "detached_encoder": (
        0,
        "detach|(no|without) gradient|gradient .*(None|missing)|not reach|graph",
    ),
    "lr_zero": (0, r"\blr\b|learning rate"),
    "left_in_eval": (20, r"\beval|train(ing)? mode|training(=| is |: )False"),
    "clip_before_backward": (0, "clip"),
    "softmax_before_loss": (0, "softmax|logits"),
    "not_normalised": (0, "normali[sz]ed"),
    "evaluated_in_training_mode": (20, r"\beval\b"),
    "samples_as_sequence": (0, "along the samples|batch_first|depends on the others"),
}


class RowReader(nn.Module):
    def __init__(self, hidden=64, bug=None):
        super().__init__()
        self.lstm = nn.LSTM(28, hidden, batch_first=bug != "samples_as_sequence")
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(hidden, 10)
        self.bug = bug

    def forward(self, x):
        rows, _ = self.lstm((x.squeeze(1) - 0.13) / 0.31)
        summary = rows.mean(dim=1)
        if self.bug == "detached_encoder":
            summary = summary.detach()
        scores = self.head(self.dropout(summary))
        return scores.softmax(dim=1) if self.bug == "softmax_before_loss" else scores


def train(model, loader, optimizer, bug):
    if bug != "left_in_eval":
        model.train()
    total = 0.0
    for images, labels in loader:
        if bug != "no_zero_grad":
            optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        if bug == "clip_before_backward":
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        if bug == "step_before_backward":
            optimizer.step()
        loss.backward()
        if bug != "clip_before_backward":
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        if bug != "step_before_backward":
            optimizer.step()
        total += loss.item()
    return total / len(loader)


def evaluate(model, loader, bug=None):
    if bug != "evaluated_in_training_mode":
        model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(images), labels).item() for images, labels in loader]
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
    if args.bug == "not_normalised":
        train_set = TensorDataset(train_set.tensors[0] * 255, train_set.tensors[1])
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=64)

    model = RowReader(bug=args.bug)
    if args.bug == "frozen_encoder":
        model.lstm.requires_grad_(False)
    trained = RowReader() if args.bug == "other_model_optimizer" else model
    lr = 0.0 if args.bug == "lr_zero" else 0.5
    optimizer = optim.SGD(trained.parameters(), lr=lr, momentum=0.9)

    for epoch in range(1, args.epochs + 1):
        train_loss = train(model, train_loader, optimizer, args.bug)
        test_loss = evaluate(model, test_loader, args.bug)
        print(f"epoch {epoch} train loss {train_loss:.4f} test loss {test_loss:.4f}")


if __name__ == "__main__":
    main()
