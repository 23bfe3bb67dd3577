"""A GRU foretells the next value of a noisy wave that gets faster."""

from __future__ import annotations

import argparse

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

BUGS = {
    "targets_in_a_column": (0, "broadcast|dimension|shape"),
    "window_holds_target": (0, "predict"),
    "optimizer_after_schedule": (1, r"schedul|\blr\b|learning rate"),
}
LENGTH = 24


class Forecast(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(1, 32, batch_first=True)
        self.output = nn.Linear(32, 1)

    def forward(self, x):
        states, _ = self.recurrent(x)
        return self.output(states[:, -1]).squeeze(1)


def load_waves(count, overlap=0):
    """Windows of a wave that gets faster, each with the value that follows."""
    time = torch.arange(count + LENGTH, dtype=torch.float32)
    wave = (0.3 * time + 1e-4 * time.square()).sin() + 0.1 * torch.randn(len(time))
    windows = wave.unfold(0, LENGTH + 1, 1)[:count]
    return windows[:, overlap : LENGTH + overlap, None], windows[:, -1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--bug", choices=BUGS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    inputs, targets = load_waves(768, overlap=args.bug == "window_holds_target")
    if args.bug == "targets_in_a_column":
        targets = targets[:, None]
    train_set = TensorDataset(inputs[:640], targets[:640])
    loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    model = Forecast()
    optimizer = optim.Adam(model.parameters(), lr=5e-3)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=args.epochs * len(loader))
    if args.bug == "optimizer_after_schedule":
        optimizer = optim.Adam(model.parameters(), lr=5e-3)
    criterion = nn.MSELoss()
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for windows, following in loader:
            optimizer.zero_grad()
            loss = criterion(model(windows), following)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            held_out = criterion(model(inputs[640:]), targets[640:]).item()
        print(f"epoch {epoch} train loss {total / len(loader):.4f} test loss {held_out:.4f}")


if __name__ == "__main__":
    main()
