"""A trained teacher tells a small student what it sees."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {"teacher_teaches_nothing": (20, "no_grad|detached")}


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
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = optim.Adam(teacher.parameters(), lr=3e-3)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(teacher(images), labels).backward()
        optimizer.step()
    teacher.eval()

    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 24), nn.Dropout(0.1), nn.Linear(24, 10))
    optimizer = optim.AdamW(student.parameters(), lr=3e-3)
    for epoch in range(1, args.epochs + 1):
        student.train()
        total = 0.0
        for images, labels in loader:
            with torch.no_grad():
                wanted = (teacher(images) / 2).softmax(dim=1)
            scores = student(images)
            with torch.set_grad_enabled(args.bug != "teacher_teaches_nothing"):
                told = F.kl_div((scores / 2).log_softmax(dim=1), wanted, reduction="batchmean")
            loss = F.cross_entropy(scores, labels) + 4 * told
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f}")


if __name__ == "__main__":
    main()
