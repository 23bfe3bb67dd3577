"""A large network tells the classes of digits that have none, and a small one learns from all."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {
    "teacher_in_training_mode": (36, "training mode"),
    "student_in_eval_mode": (36, r"\beval|training mode"),
}


def make_teacher():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 160),
        nn.BatchNorm1d(160),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(160, 10),
    )


def make_student():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1352, 10)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set, test_set = load_digits(896, 128)
    labelled = TensorDataset(*(tensor[:384] for tensor in train_set.tensors))
    unlabelled = TensorDataset(train_set.tensors[0][384:])
    loader = DataLoader(labelled, batch_size=args.batch_size, shuffle=True)
    teacher = make_teacher()
    optimizer = optim.RAdam(teacher.parameters(), lr=5e-3)
    for _ in range(3):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(teacher(images), labels).backward()
            optimizer.step()

    if args.bug != "teacher_in_training_mode":
        teacher.eval()
    student = make_student()
    optimizer = optim.RAdam(student.parameters(), lr=2e-2)
    others = DataLoader(unlabelled, batch_size=args.batch_size, shuffle=True, drop_last=True)
    for epoch in range(1, args.epochs + 1):
        student.train(args.bug != "student_in_eval_mode")
        total = 0.0
        for (images, labels), (unknown,) in zip(loader, others, strict=False):
            with torch.no_grad():
                sure, guessed = teacher(unknown).softmax(dim=1).max(dim=1)
            scores = student(torch.cat([images, unknown]))
            first, second = scores.split([len(images), len(unknown)])
            each = F.cross_entropy(second, guessed, reduction="none")
            loss = F.cross_entropy(first, labels) + (each * (sure > 0.6)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        student.eval()
        with torch.no_grad():
            right = student(test_set.tensors[0]).argmax(dim=1) == test_set.tensors[1]
        accuracy = right.float().mean().item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f} accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
