"""A trained teacher tells a small student what it sees."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader

BUGS = {
    "teacher_teaches_nothing": (20, "no_grad|detached"),
    "teacher_in_training_mode": (20, "training mode|train\\(\\)"),
}


class Lesson(nn.Module):
    """A teacher that stays as it is, and a student that learns."""

    def __init__(self, teacher, student, bug):
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.bug = bug

    def train(self, mode=True):
        super().train(mode)
        if self.bug != "teacher_in_training_mode":
            self.teacher.eval()
        return self

    def forward(self, images):
        with torch.no_grad():
            told = self.teacher(images)
        return self.student(images), told


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
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.2))
    teacher.append(nn.Linear(128, 10))
    optimizer = optim.Adam(teacher.parameters(), lr=3e-3)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(teacher(images), labels).backward()
        optimizer.step()

    student = nn.Sequential(nn.Flatten(), nn.Linear(784, 24), nn.Dropout(0.1), nn.Linear(24, 10))
    lesson = Lesson(teacher, student, args.bug)
    optimizer = optim.AdamW(student.parameters(), lr=3e-3)
    for epoch in range(1, args.epochs + 1):
        lesson.train()
        total = 0.0
        for images, labels in loader:
            scores, shown = lesson(images)
            wanted = (shown / 2).softmax(dim=1)
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
